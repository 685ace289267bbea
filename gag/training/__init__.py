"""Tuning an expert, here or elsewhere, and what a stage leaves for people.

In: rows as token ids, settings, and a run (`sft`, by TRL); or a checkpoint that was tuned elsewhere
(`checkpoint`, and `llamafactory`, which writes the files for that). Out: a folder with an adapter or full
weights; a report with a plot (`report`); curves in a tracking library (`tracking`).
"""
