//! Turns an OCI seccomp section into the BPF program the kernel runs on every system call.
//!
//! ```text
//! load arch ── is it A? ── load nr ── binary search over [nr ranges] ── argument checks ── return action
//!           └─ is it B? ── …
//!           └─ none: kill the process (as libseccomp does by default)
//! ```
//!
//! Why not libseccomp: one build of Docker's profile costs it milliseconds a container, its program compares numbers one
//! after the other, and it is a C library to be found and linked (ADR 0008). Invariants, held by tests that run
//! the program in an interpreter: the verdict for every (architecture, number, arguments) equals that of the rules read one by one;
//! a system call newer than everything the profile names is `ENOSYS`, not `EPERM`, so that programs fall back.

use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator};
use skiff_sys::process::BpfInstruction;

use super::SeccompError;
use super::syscalls::{Abi, number};

/// Bits of BPF operation codes (linux/bpf_common.h).
mod op {
    pub(super) const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    pub(super) const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
    pub(super) const JEQ: u16 = 0x15;
    pub(super) const JGT: u16 = 0x25;
    pub(super) const JGE: u16 = 0x35;
    pub(super) const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
    pub(super) const RETURN: u16 = 0x06;
}

/// Offsets in `struct seccomp_data`.
const OFFSET_NR: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGS: u32 = 16;

const X32_BIT: u32 = 0x4000_0000;
const ENOSYS: u32 = 38;
const EPERM: u32 = 1;

const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_KILL_THREAD: u32 = 0;
const RET_TRAP: u32 = 0x0003_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_TRACE: u32 = 0x7ff0_0000;
const RET_LOG: u32 = 0x7ffc_0000;
const RET_ALLOW: u32 = 0x7fff_0000;

/// System calls whose first argument the kernel takes as a 32-bit integer. Comparing all 64 bits would let a caller
/// past the filter with garbage in the upper half: `socket(0x1_0000_0026, …)` is `socket(AF_ALG, …)` to the kernel.
const INT_ARGUMENT: &[&str] = &["socket", "socketpair", "socketcall", "personality"];

/// One condition on an argument.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Check {
    index: u32,
    op: LinuxSeccompOperator,
    value: u64,
    mask: u64,
    /// Look at the lower half only.
    narrow: bool,
}

/// What happens to one system call: the first case whose checks all hold; `otherwise` when none does.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Verdict {
    cases: Vec<(Vec<Check>, u32)>,
    otherwise: u32,
}

/// A run of numbers with one verdict.
#[derive(Debug)]
struct Range {
    first: u32,
    verdict: Verdict,
}

/// Compiles a profile.
///
/// # Errors
/// What the kernel or this engine cannot do: `SCMP_ACT_NOTIFY`, an argument index beyond 5, a program too long, an architecture without tables.
pub(crate) fn compile(profile: &LinuxSeccomp) -> Result<Vec<BpfInstruction>, SeccompError> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut program = Program::default();
    program.push(op::LOAD, OFFSET_ARCH);
    for (token, abis) in architectures(profile)? {
        let ranges = ranges(profile, &abis, default)?;
        let skip = program.jump_unless(op::JEQ, token);
        program.push(op::LOAD, OFFSET_NR);
        program.search(&ranges);
        program.land(skip);
    }
    program.push(op::RETURN, RET_KILL_PROCESS);
    if program.0.len() > 4096 {
        return Err(SeccompError::Unsupported(format!(
            "a filter of {} instructions",
            program.0.len()
        )));
    }
    Ok(program.0)
}

/// The audit tokens of the profile's architectures, each with the system-call tables that apply under it.
fn architectures(profile: &LinuxSeccomp) -> Result<Vec<(u32, Vec<Abi>)>, SeccompError> {
    const NATIVE: Arch = if cfg!(target_arch = "x86_64") {
        Arch::ScmpArchX86_64
    } else {
        Arch::ScmpArchAarch64
    };
    let mut named = vec![NATIVE];
    named.extend(profile.architectures().iter().flatten().copied());
    let mut found: Vec<(u32, Vec<Abi>)> = Vec::new();
    for arch in named {
        let (token, abi) = match arch {
            Arch::ScmpArchNative => continue,
            Arch::ScmpArchX86_64 => (0xc000_003e, Abi::X86_64),
            Arch::ScmpArchX32 => (0xc000_003e, Abi::X32),
            Arch::ScmpArchX86 => (0x4000_0003, Abi::X86),
            Arch::ScmpArchAarch64 => (0xc000_00b7, Abi::Aarch64),
            Arch::ScmpArchArm => (0x4000_0028, Abi::Arm),
            // Not an architecture this kernel could run: nothing to filter.
            _ => continue,
        };
        match found.iter_mut().find(|(known, _)| *known == token) {
            Some((_, abis)) if abis.contains(&abi) => {}
            Some((_, abis)) => abis.push(abi),
            None => found.push((token, vec![abi])),
        }
    }
    if cfg!(not(any(target_arch = "x86_64", target_arch = "aarch64"))) {
        return Err(SeccompError::Unsupported(
            "system-call tables for this architecture".to_owned(),
        ));
    }
    Ok(found)
}

/// The verdicts of one architecture as ranges that cover all numbers, neighbours merged.
fn ranges(profile: &LinuxSeccomp, abis: &[Abi], default: u32) -> Result<Vec<Range>, SeccompError> {
    let mut numbered: Vec<(u32, Verdict)> = Vec::new();
    for rule in profile.syscalls().iter().flatten() {
        let verdict = action(rule.action(), rule.errno_ret())?;
        for name in rule.names() {
            for nr in abis.iter().filter_map(|&abi| number(abi, name)) {
                let entry = match numbered.binary_search_by_key(&nr, |(nr, _)| *nr) {
                    Ok(at) => &mut numbered[at].1,
                    Err(at) => {
                        numbered.insert(
                            at,
                            (
                                nr,
                                Verdict {
                                    cases: Vec::new(),
                                    otherwise: default,
                                },
                            ),
                        );
                        &mut numbered[at].1
                    }
                };
                add_rule(
                    entry,
                    name,
                    verdict,
                    rule.args().as_deref().unwrap_or_default(),
                    default,
                )?;
            }
        }
    }
    let plain = |verdict| Verdict {
        cases: Vec::new(),
        otherwise: verdict,
    };
    // The numbers above this one are younger than the profile; the private calls of arm do not count.
    let youngest = |below: u32, from: u32| {
        numbered
            .iter()
            .map(|(nr, _)| *nr)
            .filter(|nr| (from..below).contains(nr))
            .max()
            .map_or(from, |nr| nr + 1)
    };
    let unknown = if default == RET_ERRNO | EPERM {
        RET_ERRNO | ENOSYS
    } else {
        default
    };
    let mut bounds = vec![(youngest(0x1000, 0), unknown)];
    if abis.contains(&Abi::X32) {
        bounds.extend([(X32_BIT, default), (youngest(X32_BIT + 0x1000, X32_BIT), unknown)]);
    }
    let mut ranges = vec![Range {
        first: 0,
        verdict: plain(default),
    }];
    let mut background = default;
    let mut next = numbered.into_iter().peekable();
    let mut bounds = bounds.into_iter().peekable();
    loop {
        let boundary = bounds.peek().map(|(at, _)| *at);
        match next.peek().map(|(nr, _)| *nr) {
            Some(nr) if boundary.is_none_or(|at| nr < at) => {
                let Some((nr, verdict)) = next.next() else { break };
                push(&mut ranges, nr, verdict);
                push(&mut ranges, nr + 1, plain(background));
            }
            _ => {
                let Some((at, action)) = bounds.next() else { break };
                background = action;
                push(&mut ranges, at, plain(action));
            }
        }
    }
    Ok(ranges)
}

/// Adds a range that starts at `first`; an empty predecessor disappears, an equal one absorbs it.
fn push(ranges: &mut Vec<Range>, first: u32, verdict: Verdict) {
    if ranges.last().is_some_and(|last| last.first == first) {
        ranges.pop();
    }
    if ranges.last().is_none_or(|last| last.verdict != verdict) {
        ranges.push(Range { first, verdict });
    }
}

fn add_rule(
    entry: &mut Verdict,
    name: &str,
    verdict: u32,
    args: &[LinuxSeccompArg],
    default: u32,
) -> Result<(), SeccompError> {
    if args.is_empty() {
        // The first unconditional rule wins over the default and over later ones.
        if entry.otherwise == default {
            entry.otherwise = verdict;
        }
        return Ok(());
    }
    let mut checks = Vec::with_capacity(args.len());
    for arg in args {
        let index = u32::try_from(arg.index()).unwrap_or(u32::MAX);
        if index > 5 {
            return Err(SeccompError::Invalid(format!("argument index {index} of {name}")));
        }
        let masked = arg.op() == LinuxSeccompOperator::ScmpCmpMaskedEq;
        let (value, mask) = if masked {
            (arg.value_two().unwrap_or(0), arg.value())
        } else {
            (arg.value(), u64::MAX)
        };
        let narrow = index == 0 && INT_ARGUMENT.contains(&name);
        checks.push(Check {
            index,
            op: arg.op(),
            value,
            mask,
            narrow,
        });
    }
    // As runc does: several conditions on one argument are alternatives, on different ones they must all hold.
    let mut indexes: Vec<u32> = checks.iter().map(|check| check.index).collect();
    indexes.sort_unstable();
    indexes.dedup();
    if indexes.len() < checks.len() {
        entry
            .cases
            .extend(checks.into_iter().map(|check| (vec![check], verdict)));
    } else {
        entry.cases.push((checks, verdict));
    }
    Ok(())
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, SeccompError> {
    let errno = errno.unwrap_or(EPERM).min(4095);
    Ok(match action {
        LinuxSeccompAction::ScmpActAllow => RET_ALLOW,
        LinuxSeccompAction::ScmpActErrno => RET_ERRNO | errno,
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => RET_KILL_THREAD,
        LinuxSeccompAction::ScmpActKillProcess => RET_KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => RET_TRAP,
        LinuxSeccompAction::ScmpActTrace => RET_TRACE | errno,
        LinuxSeccompAction::ScmpActLog => RET_LOG,
        LinuxSeccompAction::ScmpActNotify => {
            return Err(SeccompError::Unsupported("SCMP_ACT_NOTIFY".to_owned()));
        }
    })
}

/// The program under construction.
#[derive(Default)]
struct Program(Vec<BpfInstruction>);

/// A forward jump whose target is not known yet.
struct Pending(usize);

impl Program {
    fn push(&mut self, code: u16, k: u32) {
        self.0.push(BpfInstruction {
            code,
            jt: 0,
            jf: 0,
            k,
        });
    }

    /// Goes on when the comparison holds, else jumps to where the result is [`Program::land`]ed. Conditional jumps reach
    /// 255 instructions only, hence the unconditional one behind it.
    fn jump_unless(&mut self, code: u16, k: u32) -> Pending {
        self.0.push(BpfInstruction {
            code,
            jt: 1,
            jf: 0,
            k,
        });
        self.push(op::JUMP, 0);
        Pending(self.0.len() - 1)
    }

    /// The opposite of [`Program::jump_unless`].
    fn jump_if(&mut self, code: u16, k: u32) -> Pending {
        self.0.push(BpfInstruction {
            code,
            jt: 0,
            jf: 1,
            k,
        });
        self.push(op::JUMP, 0);
        Pending(self.0.len() - 1)
    }

    fn land(&mut self, pending: Pending) {
        self.0[pending.0].k = u32::try_from(self.0.len() - pending.0 - 1).unwrap_or(u32::MAX);
    }

    /// Binary search for the number in the accumulator.
    fn search(&mut self, ranges: &[Range]) {
        match ranges {
            [] => self.push(op::RETURN, RET_KILL_PROCESS),
            [range] => self.verdict(&range.verdict),
            _ => {
                let (lower, upper) = ranges.split_at(ranges.len() / 2);
                let below = self.jump_unless(op::JGE, upper[0].first);
                self.search(upper);
                self.land(below);
                self.search(lower);
            }
        }
    }

    fn verdict(&mut self, verdict: &Verdict) {
        for (checks, action) in &verdict.cases {
            let mut misses = Vec::new();
            for check in checks {
                self.check(check, &mut misses);
            }
            self.push(op::RETURN, *action);
            for miss in misses {
                self.land(miss);
            }
        }
        self.push(op::RETURN, verdict.otherwise);
    }

    /// Goes on when the check holds; jumps that must be taken otherwise are added to `misses`.
    fn check(&mut self, check: &Check, misses: &mut Vec<Pending>) {
        use LinuxSeccompOperator as Op;
        let low = OFFSET_ARGS + 8 * check.index + if cfg!(target_endian = "big") { 4 } else { 0 };
        let high = low ^ 4;
        let half = |value: u64| ((value >> 32) as u32, (value & 0xffff_ffff) as u32);
        let ((mask_high, mask_low), (value_high, value_low)) = (half(check.mask), half(check.value));
        let load = |program: &mut Self, offset, mask: u32| {
            program.push(op::LOAD, offset);
            if mask != u32::MAX {
                program.push(op::AND, mask);
            }
        };
        match check.op {
            Op::ScmpCmpEq | Op::ScmpCmpMaskedEq => {
                if !check.narrow {
                    load(self, high, mask_high);
                    misses.push(self.jump_unless(op::JEQ, value_high));
                }
                load(self, low, mask_low);
                misses.push(self.jump_unless(op::JEQ, value_low));
            }
            Op::ScmpCmpNe => {
                let differs = (!check.narrow).then(|| {
                    load(self, high, u32::MAX);
                    self.jump_unless(op::JEQ, value_high)
                });
                load(self, low, u32::MAX);
                misses.push(self.jump_if(op::JEQ, value_low));
                if let Some(differs) = differs {
                    self.land(differs);
                }
            }
            Op::ScmpCmpGt | Op::ScmpCmpGe => {
                let above = (!check.narrow).then(|| {
                    load(self, high, u32::MAX);
                    let above = self.jump_if(op::JGT, value_high);
                    misses.push(self.jump_unless(op::JEQ, value_high));
                    above
                });
                load(self, low, u32::MAX);
                let code = if check.op == Op::ScmpCmpGt {
                    op::JGT
                } else {
                    op::JGE
                };
                misses.push(self.jump_unless(code, value_low));
                if let Some(above) = above {
                    self.land(above);
                }
            }
            Op::ScmpCmpLt | Op::ScmpCmpLe => {
                let below = (!check.narrow).then(|| {
                    load(self, high, u32::MAX);
                    misses.push(self.jump_if(op::JGT, value_high));
                    self.jump_unless(op::JEQ, value_high)
                });
                load(self, low, u32::MAX);
                let code = if check.op == Op::ScmpCmpLt {
                    op::JGE
                } else {
                    op::JGT
                };
                misses.push(self.jump_if(code, value_low));
                if let Some(below) = below {
                    self.land(below);
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "bpf_tests.rs"]
mod tests;
