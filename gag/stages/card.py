"""The card of a domain: what it was built from, for whom, and what it cannot do."""

from gag.project.domain import DomainFacts
from gag.project.hyperparameters import ReadoutSettings


def card(facts: DomainFacts) -> str:
    """Write the README.md of a domain's folder."""
    base, expert, bank, name = facts.base, facts.expert, facts.bank, facts.name
    tuned = f"{expert.model}, {facts.tuning} tuning"
    carried = ", the vectors of some questions" if bank.sample else ""
    loss, arrived = facts.scores.val_loss, facts.scores.transfer
    told = ["not measured" if loss is None else f"{loss:.4f} per answer token"]
    told.append("not measured" if arrived is None else f"{arrived.line} {arrived.advice(facts.readout)}")
    data = [f"- {role}: SHA-256 `{hashed[:16]}…`" for role, hashed in facts.data.items()]
    return f"""# {name}

A GAG domain: private knowledge for a frozen base, as a folder.

| | |
|---|---|
| base | {base.model}, width {base.width}, fingerprint `{base.fingerprint[:12]}` |
| expert | {tuned}, width {expert.width}, fingerprint `{expert.fingerprint[:12]}` |
| readout | {_readout(facts.readout)} |
| projector | {facts.projector} |
| router bank | {bank.centres} centres of {bank.count} questions, {bank.sample} of them as vectors |
| validation loss | {told[0]} |
| transfer | {told[1]} |
| built | {facts.created} |

## Data

{chr(10).join(data) or "- not recorded"}

## Intended use and limits

To answer questions of the field that these rows teach, by the frozen base named above. What the
expert was not taught it cannot pass on, and an answer that sounds sure can be wrong: `gag evaluate
{name} --evidence` says how often answers are right on test rows and how much the vectors did for
them, `gag compare {name}` how other methods do. The expert's weights{carried} and the bank can give
away what they were made from: share this folder as you would share the data.

## Use

Copy this folder into `domains/` of a project with the same base and expert, or run `gag domains add FOLDER`.
Then `gag domains verify` checks it. `domain.json` holds the hashes of the files and of the data.
"""


def _readout(readout: ReadoutSettings) -> str:
    """Say what becomes vectors."""
    vectors = "one vector" if readout.slots == 1 else f"{readout.slots} vectors"
    if readout.select == "salient":
        made = "embeddings" if readout.space == "vocabulary" else f"states of layers {list(readout.layers)}"
        return f"{vectors} from the {made} of the words that are news and answer the question"
    if readout.space == "vocabulary":
        return f"{vectors} from the base's embeddings of the tokens that are foretold, {readout.pooling}"
    return f"{vectors} from layers {list(readout.layers)}, pooling {readout.pooling}"
