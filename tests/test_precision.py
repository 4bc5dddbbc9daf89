"""Matrix products run in bfloat16 only where the processor multiplies in it."""

import pytest
import torch

from kdmarl_core.nets import precision
from kdmarl_core.nets.precision import dtype_of, products_in

X86 = "flags\t\t: fpu avx512f avx512_vnni {}\n"
ARM = "Features\t: fp asimd sve {}\n"


@pytest.fixture
def processor(tmp_path, monkeypatch):
    """Make this machine's processor one of which Linux says so."""

    def make(text):
        path = tmp_path / "cpuinfo"
        path.write_text(text, encoding="utf-8")
        monkeypatch.setattr(precision, "CPU_INFO", path)

    return make


def multiplied_in(wanted):
    with products_in(wanted):
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


@pytest.mark.parametrize(
    "text", [X86.format("avx512_bf16"), X86.format("amx_bf16"), ARM.format("bf16")]
)
def test_bfloat16_where_the_processor_has_it(processor, text):
    processor(text)
    assert dtype_of("bfloat16") == multiplied_in("bfloat16") == torch.bfloat16
    assert dtype_of("float32") == multiplied_in("float32") == torch.float32


@pytest.mark.parametrize("text", [X86.format("amx_int8"), ARM.format("i8mm"), "", "model: x_bf16"])
def test_float32_where_bfloat16_would_be_emulated(processor, text):
    processor(text)
    assert dtype_of("bfloat16") == multiplied_in("bfloat16") == torch.float32


def test_float32_where_nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "missing")
    assert dtype_of("bfloat16") == torch.float32
