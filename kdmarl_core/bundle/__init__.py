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
from kdmarl_core.bundle.policy import BundlePolicy, load_policy, think_ahead
from kdmarl_core.bundle.signing import NO_TRUST, SECURITY, Security, Trust, admit

__all__ = [
    "ACTION_MASK",
    "MANIFEST",
    "MODEL",
    "NO_TRUST",
    "SCHEMA_VERSION",
    "SECURITY",
    "BlockEntry",
    "BundlePolicy",
    "Manifest",
    "Measured",
    "ModelEntry",
    "Security",
    "StudentEntry",
    "TeacherEntry",
    "Trust",
    "admit",
    "load_policy",
    "read_bundle",
    "think_ahead",
    "write_bundle",
]
