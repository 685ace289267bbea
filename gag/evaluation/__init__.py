"""Judge answers: metrics, ways to answer, and the proof that the general route is the base itself."""
