"""The artefact that crosses to a robot: all that a robot's process imports of the core."""

from kdmarl_core.bundle.manifest import (
    ACTION_MASK,
    MANIFEST,
    MODEL,
    SCHEMA_VERSION,
    BlockEntry,
    Manifest,
    Measured,
    ModelEntry,
    StudentEntry,
    TeacherEntry,
    read_bundle,
    write_bundle,
)
from kdmarl_core.bundle.messages import (
    FORMATS,
    UNDISTURBED,
    Disturbance,
    Inbox,
    MessageEntry,
    PeerEntry,
    encode,
    message_entry,
)
from kdmarl_core.bundle.policy import BundlePolicy, load_policy, think_ahead
from kdmarl_core.bundle.signing import NO_TRUST, SECURITY, Security, Trust, admit

__all__ = [
    "ACTION_MASK",
    "FORMATS",
    "MANIFEST",
    "MODEL",
    "NO_TRUST",
    "SCHEMA_VERSION",
    "SECURITY",
    "UNDISTURBED",
    "BlockEntry",
    "BundlePolicy",
    "Disturbance",
    "Inbox",
    "Manifest",
    "Measured",
    "MessageEntry",
    "ModelEntry",
    "PeerEntry",
    "Security",
    "StudentEntry",
    "TeacherEntry",
    "Trust",
    "admit",
    "encode",
    "load_policy",
    "message_entry",
    "read_bundle",
    "think_ahead",
    "write_bundle",
]
