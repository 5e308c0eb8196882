//! Which TUN queue, and so which lane, the kernel gives a packet to: a BPF program that looks at the packet alone.
//!
//! Left to itself the kernel gives a packet to the queue on which an answer was last written, and forgets that after
//! 3 s (drivers/net/tun.c). So a flow changes lanes in the middle whenever the peer answers on another lane, which one
//! of another number of lanes does, and the lane that is ahead overtakes. With the program a flow has one lane for
//! good. Both ends find the same number for both directions of most flows, translated or not: of two ports the higher
//! one, which is the caller's and which no VIP changes. So with equal lanes an answer is sent by the lane that its
//! question came to.
//!
//! ```text
//! IPv4? ─no─▶ 0        TCP or UDP, whole? ─▶ the higher port ≥ 32768? ─▶ that port
//!                                └─no─▶ both addresses      └─no─▶ both addresses + both ports
//! ```
//!
//! The kernel takes the result modulo the number of queues.

/// Ports from which systems choose the caller's; Linux' default is 32768 to 60999.
const EPHEMERAL: i32 = 32768;
/// 2^32 divided by the golden ratio, as the kernel's own hash for small numbers (linux/hash.h).
const GOLDEN: i32 = 0x61c8_8647;

/// What an instruction does (linux/bpf_common.h, linux/bpf.h).
mod code {
    pub(crate) const LOAD_WORD: u8 = 0x20;
    pub(crate) const LOAD_HALF: u8 = 0x28;
    pub(crate) const LOAD_BYTE: u8 = 0x30;
    pub(crate) const LOAD_WORD_AT: u8 = 0x40;
    pub(crate) const COPY: u8 = 0xbf;
    pub(crate) const SET: u8 = 0xb7;
    pub(crate) const ADD: u8 = 0x0f;
    pub(crate) const AND: u8 = 0x57;
    pub(crate) const SHIFT_LEFT: u8 = 0x67;
    pub(crate) const SHIFT_RIGHT: u8 = 0x77;
    pub(crate) const MULTIPLY_32: u8 = 0x24;
    pub(crate) const SHIFT_RIGHT_32: u8 = 0x74;
    pub(crate) const IF_EQUAL: u8 = 0x15;
    pub(crate) const IF_NOT: u8 = 0x55;
    pub(crate) const IF_AT_LEAST: u8 = 0x35;
    pub(crate) const IF_AT_LEAST_REGISTER: u8 = 0x3d;
    pub(crate) const END: u8 = 0x95;
}

/// One instruction as the kernel takes it (struct bpf_insn).
pub(crate) type Instruction = [u8; 8];

/// Where a load leaves its result; what ends the program returns it.
const RESULT: u8 = 0;
/// Where the kernel gives the packet, and where loads expect it.
const GIVEN: u8 = 1;
const PACKET: u8 = 6;
/// Registers of ours, which loads leave alone.
const HEADER: u8 = 7;
const SOURCE_PORT: u8 = 8;
const HASH: u8 = 9;

const fn instruction(code: u8, to: u8, from: u8, skip: i16, value: i32) -> Instruction {
    let registers = if cfg!(target_endian = "little") { from << 4 | to } else { to << 4 | from };
    let ([s0, s1], [v0, v1, v2, v3]) = (skip.to_ne_bytes(), value.to_ne_bytes());
    [code, registers, s0, s1, v0, v1, v2, v3]
}

/// The program.
pub(crate) const PROGRAM: [Instruction; 34] = [
    instruction(code::COPY, PACKET, GIVEN, 0, 0),
    // IPv4?
    instruction(code::LOAD_BYTE, 0, 0, 0, 0),
    instruction(code::COPY, HEADER, RESULT, 0, 0),
    instruction(code::AND, RESULT, 0, 0, 0xf0),
    instruction(code::IF_EQUAL, RESULT, 0, 2, 0x40),
    instruction(code::SET, RESULT, 0, 0, 0),
    instruction(code::END, 0, 0, 0, 0),
    // How long is its header?
    instruction(code::AND, HEADER, 0, 0, 0xf),
    instruction(code::SHIFT_LEFT, HEADER, 0, 0, 2),
    instruction(code::SET, HASH, 0, 0, 0),
    // A fragment has no ports, or is followed by others that have none: they go together.
    instruction(code::LOAD_HALF, 0, 0, 0, 6),
    instruction(code::AND, RESULT, 0, 0, 0x3fff),
    instruction(code::IF_NOT, RESULT, 0, 13, 0),
    // TCP or UDP?
    instruction(code::LOAD_BYTE, 0, 0, 0, 9),
    instruction(code::IF_EQUAL, RESULT, 0, 1, 6),
    instruction(code::IF_NOT, RESULT, 0, 10, 17),
    instruction(code::LOAD_WORD_AT, 0, HEADER, 0, 0),
    instruction(code::COPY, SOURCE_PORT, RESULT, 0, 0),
    instruction(code::SHIFT_RIGHT, SOURCE_PORT, 0, 0, 16),
    instruction(code::AND, RESULT, 0, 0, 0xffff),
    // The higher one.
    instruction(code::COPY, HASH, RESULT, 0, 0),
    instruction(code::IF_AT_LEAST_REGISTER, RESULT, SOURCE_PORT, 1, 0),
    instruction(code::COPY, HASH, SOURCE_PORT, 0, 0),
    instruction(code::IF_AT_LEAST, HASH, 0, 6, EPHEMERAL),
    instruction(code::COPY, HASH, RESULT, 0, 0),
    instruction(code::ADD, HASH, SOURCE_PORT, 0, 0),
    // The addresses.
    instruction(code::LOAD_WORD, 0, 0, 0, 12),
    instruction(code::ADD, HASH, RESULT, 0, 0),
    instruction(code::LOAD_WORD, 0, 0, 0, 16),
    instruction(code::ADD, HASH, RESULT, 0, 0),
    // Mixed, so that neighbours part.
    instruction(code::MULTIPLY_32, HASH, 0, 0, GOLDEN),
    instruction(code::SHIFT_RIGHT_32, HASH, 0, 0, 16),
    instruction(code::COPY, RESULT, HASH, 0, 0),
    instruction(code::END, 0, 0, 0, 0),
];
