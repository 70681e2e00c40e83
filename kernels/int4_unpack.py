"""Unpacking of 4-bit weights in a kernel: words of 8 nibbles to floats, by inline PTX or in plain Triton."""

from __future__ import annotations

from .language import tl, triton

# One word of 8 nibbles n -> 8 numbers n - 8 in 16 bits, as four registers of two. The two of a register are nibbles i
# and i + 4, which are 16 bits apart, so nothing is shuffled. lop3 0xEA is (a & b) | c.
_BFLOAT16_PTX = tl.constexpr("""{
.reg .b32 a, b, c, d;
shr.u32 b, $8, 4;
shr.u32 c, $8, 8;
shr.u32 d, $8, 12;
lop3.b32 a, $8, 0x000F000F, 0x43004300, 0xEA;
lop3.b32 b, b, 0x000F000F, 0x43004300, 0xEA;
lop3.b32 c, c, 0x000F000F, 0x43004300, 0xEA;
lop3.b32 d, d, 0x000F000F, 0x43004300, 0xEA;
.reg .b32 one, minus136;
mov.b32 one, 0x3F803F80;
mov.b32 minus136, 0xC308C308;
fma.rn.bf16x2 a, a, one, minus136;
fma.rn.bf16x2 b, b, one, minus136;
fma.rn.bf16x2 c, c, one, minus136;
fma.rn.bf16x2 d, d, one, minus136;
mov.b32 {$0, $1}, a;
mov.b32 {$2, $3}, b;
mov.b32 {$4, $5}, c;
mov.b32 {$6, $7}, d;
}""")
# The same in float16. Its mantissa has room for a nibble in bits 4..7: 1024 + 16 n, which is divided by 16, minus 72.
_FLOAT16_PTX = tl.constexpr("""{
.reg .b32 a, b, c, d, high;
shr.u32 high, $8, 8;
lop3.b32 a, $8, 0x000F000F, 0x64006400, 0xEA;
lop3.b32 b, $8, 0x00F000F0, 0x64006400, 0xEA;
lop3.b32 c, high, 0x000F000F, 0x64006400, 0xEA;
lop3.b32 d, high, 0x00F000F0, 0x64006400, 0xEA;
.reg .b32 one, minus1032, sixteenth, minus72;
mov.b32 one, 0x3C003C00;
mov.b32 minus1032, 0xE408E408;
mov.b32 sixteenth, 0x2C002C00;
mov.b32 minus72, 0xD480D480;
fma.rn.f16x2 a, a, one, minus1032;
fma.rn.f16x2 b, b, sixteenth, minus72;
fma.rn.f16x2 c, c, one, minus1032;
fma.rn.f16x2 d, d, sixteenth, minus72;
mov.b32 {$0, $1}, a;
mov.b32 {$2, $3}, b;
mov.b32 {$4, $5}, c;
mov.b32 {$6, $7}, d;
}""")
# One word -> 8 entries of a codebook. $9 to $12 hold the low bytes and $13 to $16 the high bytes, four entries each.
# prmt selects four of eight bytes by four nibbles; bit 3 of a nibble selects the half of the codebook (lop3 0xD8 is
# c ? b : a). The two of a register are nibbles 2i and 2i + 1.
_CODEBOOK_PTX = tl.constexpr("""{
.reg .b32 s, t, h, a, b, low, high;
and.b32 s, $8, 0x77777777;
shr.u32 t, $8, 3;
and.b32 t, t, 0x11111111;
prmt.b32 h, 0xFF00, 0, t;
prmt.b32 a, $9, $10, s;
prmt.b32 b, $11, $12, s;
lop3.b32 low, a, b, h, 0xD8;
prmt.b32 a, $13, $14, s;
prmt.b32 b, $15, $16, s;
lop3.b32 high, a, b, h, 0xD8;
prmt.b32 a, low, high, 0x5140;
prmt.b32 b, low, high, 0x7362;
mov.b32 {$0, $1}, a;
mov.b32 {$2, $3}, b;
shr.u32 s, s, 16;
shr.u32 t, t, 16;
prmt.b32 h, 0xFF00, 0, t;
prmt.b32 a, $9, $10, s;
prmt.b32 b, $11, $12, s;
lop3.b32 low, a, b, h, 0xD8;
prmt.b32 a, $13, $14, s;
prmt.b32 b, $15, $16, s;
lop3.b32 high, a, b, h, 0xD8;
prmt.b32 a, low, high, 0x5140;
prmt.b32 b, low, high, 0x7362;
mov.b32 {$4, $5}, a;
mov.b32 {$6, $7}, b;
}""")


@triton.jit
def codebook_bytes(codebook_ptr, FIRST: tl.constexpr, DTYPE: tl.constexpr):
    """Entries FIRST .. FIRST + 3 of a codebook in 16 bits: one word of their low bytes, one of their high bytes."""
    low = tl.full((), 0, tl.uint32)
    high = tl.full((), 0, tl.uint32)
    for j in tl.static_range(4):
        bits = tl.load(codebook_ptr + FIRST + j).to(DTYPE).to(tl.uint16, bitcast=True).to(tl.uint32)
        low |= (bits & 255) << (8 * j)
        high |= (bits >> 8) << (8 * j)
    return low, high


@triton.jit
def unpack_int4(words, codebook_ptr, codebook_words, DTYPE: tl.constexpr, USE_PTX: tl.constexpr):
    """Words [..] of 8 nibbles -> [.., 4, 2] values, in the order of extraction; without USE_PTX in plain Triton.

    With a codebook the pairs are nibbles (0, 1), (2, 3) ..; without one (0, 4), (1, 5) ..

    Args:
        codebook_words: with USE_PTX and a codebook, the low words of `codebook_bytes` 0, 4, 8, 12, then the high ones.
    """
    if USE_PTX:
        if codebook_ptr is not None:
            a, b, c, d, e, f, g, h = tl.inline_asm_elementwise(
                _CODEBOOK_PTX,
                "=h,=h,=h,=h,=h,=h,=h,=h,r,r,r,r,r,r,r,r,r",
                (
                    words,
                    codebook_words[0],
                    codebook_words[1],
                    codebook_words[2],
                    codebook_words[3],
                    codebook_words[4],
                    codebook_words[5],
                    codebook_words[6],
                    codebook_words[7],
                ),
                (tl.int16, tl.int16, tl.int16, tl.int16, tl.int16, tl.int16, tl.int16, tl.int16),
                is_pure=True,
                pack=1,
            )
        else:
            a, b, c, d, e, f, g, h = tl.inline_asm_elementwise(
                _BFLOAT16_PTX if DTYPE == tl.bfloat16 else _FLOAT16_PTX,
                "=h,=h,=h,=h,=h,=h,=h,=h,r",
                (words,),
                (tl.int16, tl.int16, tl.int16, tl.int16, tl.int16, tl.int16, tl.int16, tl.int16),
                is_pure=True,
                pack=1,
            )
        even, odd = tl.join(tl.join(a, e), tl.join(c, g)), tl.join(tl.join(b, f), tl.join(d, h))
        values = tl.join(even, odd).to(DTYPE, bitcast=True)
    else:
        j = tl.arange(0, 8)
        if codebook_ptr is not None:
            values = tl.load(codebook_ptr + ((tl.expand_dims(words, -1) >> (4 * j)) & 15)).to(DTYPE)
        else:
            values = (((tl.expand_dims(words, -1) >> (4 * (j // 2) + 16 * (j % 2))) & 15) - 8).to(DTYPE)
    return values
