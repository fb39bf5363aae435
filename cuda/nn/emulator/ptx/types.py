"""The scalar types of PTX: size, class and the C++ type in which the translator keeps a register of each.

    >>> SCALARS["s32"].bytes, SCALARS["s32"].cpp
    (4, 'uint32_t')

Registers are kept unsigned whatever the sign of their type: PTX decides the sign by the instruction, not by
the register. f16 and bf16 values live in 16-bit registers, packed pairs in 32-bit ones."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scalar:
    """One scalar type."""

    name: str
    kind: str  # pred, bits, unsigned, signed, float; half for the 16-bit floats and packed types kept as bits
    bytes: int  # 0 for pred
    cpp: str  # of a register declared with it

    @property
    def signed(self) -> bool:
        return self.kind == "signed"

    @property
    def floating(self) -> bool:
        """Kept in a C++ float or double."""
        return self.kind == "float"

    @property
    def read_as(self) -> str:
        """The C++ type of its values in expressions: signed where the type is."""
        return f"int{8 * self.bytes}_t" if self.signed else self.cpp


def _scalars() -> dict[str, Scalar]:
    table = {"pred": Scalar("pred", "pred", 0, "bool"), "b128": Scalar("b128", "bits", 16, "emu::b128")}
    for letter, kind in (("b", "bits"), ("u", "unsigned"), ("s", "signed")):
        for bits in (8, 16, 32, 64):
            table[f"{letter}{bits}"] = Scalar(f"{letter}{bits}", kind, bits // 8, f"uint{bits}_t")
    table["f32"] = Scalar("f32", "float", 4, "float")
    table["f64"] = Scalar("f64", "float", 8, "double")
    for name in ("f16", "bf16", "e4m3x2", "e5m2x2", "e2m1x4", "e2m3x2", "e3m2x2", "ue8m0x2", "s8x2", "u8x2"):
        table[name] = Scalar(name, "half", 2, "uint16_t")
    for name in (
        "f16x2",
        "bf16x2",
        "tf32",
        "u16x2",
        "s16x2",
        "e4m3x4",
        "e5m2x4",
        "e2m3x4",
        "e3m2x4",
        "u8x4",
        "s8x4",
    ):
        table[name] = Scalar(name, "half", 4, "uint32_t")
    for name in ("e4m3", "e5m2", "e2m1x2", "ue8m0", "ue4m3"):
        table[name] = Scalar(name, "half", 1, "uint8_t")
    table["f32x2"] = Scalar("f32x2", "half", 8, "uint64_t")
    return table


SCALARS = _scalars()

# What a .reg, .param or variable may be declared with; the rest name how an instruction reads bits.
DECLARABLE = frozenset(name for name, scalar in SCALARS.items() if scalar.kind != "half") | {
    "f16",
    "bf16",
    "f16x2",
    "bf16x2",
}
