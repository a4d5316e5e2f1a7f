"""What an attacker may know and do besides seeing messages: the threat models of an audit, by name."""

from collections.abc import Mapping

NOTHING_KNOWN, MARGINALS, LISTED, MODELS, SILOS, MEMBERSHIP, PROPERTY, CRAFTED = THREAT_MODELS = (
    "nothing", "marginals", "list", "models", "silos", "membership", "property", "coordinator",
)  # fmt: skip
EXPLAINED: Mapping[str, str] = {
    NOTHING_KNOWN: "the coordinator knows nothing of the records, and reconstructs rows from what it is sent",
    MARGINALS: "it knows how such records are distributed (mean and covariance of public ones), and corrects "
    "its guesses",
    LISTED: "it has a list on which the records stand among others, and names those behind a message, or behind "
    "those of several rounds together",
    MODELS: "another silo sees the global models, takes differences of those that follow each other, takes its own "
    "part off, and has the list",
    SILOS: "the coordinator and all other silos together: they take their own messages off every sum, so that masks "
    "hide nothing, and have the list",
    MEMBERSHIP: "anybody with candidate records and their targets asks who was trained on, from losses, with shadow "
    "models, and from the answers to evaluations",
    PROPERTY: "the coordinator reads the mean of the targets and of a feature off an update, with shadow silos",
    CRAFTED: "a malicious coordinator sends models in which rows stand alone (bins, trap weights, class fishing)",
}
WITH: Mapping[str, str] = {
    NOTHING_KNOWN: "knowing nothing of the records",
    MARGINALS: "knowing how records are distributed",
    LISTED: "with a list of suspects",
    MODELS: "between global models, by another silo",
    SILOS: "by all others together",
    MEMBERSHIP: "asking who was trained on",
    PROPERTY: "asking for means over the rows",
    CRAFTED: "sent crafted models",
}
