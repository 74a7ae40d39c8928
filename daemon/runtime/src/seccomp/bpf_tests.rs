//! The compiled program, run in an interpreter, against the rules read one by one.

use oci_spec::runtime::{LinuxSeccompArgBuilder, LinuxSeccompBuilder, LinuxSyscallBuilder};
use proptest::prelude::*;

use super::*;

const X86_64: u32 = 0xc000_003e;

/// Runs a program on one system call, as the kernel would.
fn run(program: &[BpfInstruction], arch: u32, nr: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend_from_slice(&nr.to_le_bytes());
    data.extend_from_slice(&arch.to_le_bytes());
    data.extend_from_slice(&[0; 8]);
    args.iter()
        .for_each(|arg| data.extend_from_slice(&arg.to_le_bytes()));
    let (mut pc, mut a) = (0, 0u32);
    loop {
        let BpfInstruction { code, jt, jf, k } = program[pc];
        pc += 1;
        let branch = |holds: bool| usize::from(if holds { jt } else { jf });
        match code {
            op::LOAD => a = u32::from_le_bytes(data[k as usize..k as usize + 4].try_into().unwrap()),
            op::AND => a &= k,
            op::JUMP => pc += k as usize,
            op::JEQ => pc += branch(a == k),
            op::JGT => pc += branch(a > k),
            op::JGE => pc += branch(a >= k),
            op::RETURN => return k,
            other => panic!("operation {other:#x}"),
        }
    }
}

fn arg(index: usize, op: LinuxSeccompOperator, value: u64, two: u64) -> LinuxSeccompArg {
    LinuxSeccompArgBuilder::default()
        .index(index)
        .op(op)
        .value(value)
        .value_two(two)
        .build()
        .unwrap()
}

fn profile(rules: Vec<(&str, LinuxSeccompAction, Option<u32>, Vec<LinuxSeccompArg>)>) -> LinuxSeccomp {
    let syscalls: Vec<_> = rules
        .into_iter()
        .map(|(name, action, errno, args)| {
            let mut rule = LinuxSyscallBuilder::default()
                .names(vec![name.to_owned()])
                .action(action);
            if let Some(errno) = errno {
                rule = rule.errno_ret(errno);
            }
            if !args.is_empty() {
                rule = rule.args(args);
            }
            rule.build().unwrap()
        })
        .collect();
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .architectures(vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32])
        .syscalls(syscalls)
        .build()
        .unwrap()
}

const ALLOW: LinuxSeccompAction = LinuxSeccompAction::ScmpActAllow;

#[test]
fn numbers_are_told_apart_on_each_architecture() {
    let program = compile(&profile(vec![
        ("read", ALLOW, None, vec![]),
        ("clone3", LinuxSeccompAction::ScmpActErrno, Some(ENOSYS), vec![]),
    ]))
    .unwrap();
    assert_eq!(run(&program, X86_64, 0, [0; 6]), RET_ALLOW);
    assert_eq!(run(&program, X86_64, 1, [0; 6]), RET_ERRNO | EPERM);
    assert_eq!(run(&program, X86_64, 435, [0; 6]), RET_ERRNO | ENOSYS);
    assert_eq!(run(&program, X86_64, 434, [0; 6]), RET_ERRNO | EPERM);
    assert_eq!(
        run(&program, X86_64, 436, [0; 6]),
        RET_ERRNO | ENOSYS,
        "younger than the profile"
    );
    assert_eq!(run(&program, 0x4000_0003, 3, [0; 6]), RET_ALLOW, "i386 read");
    assert_eq!(run(&program, 0x4000_0003, 0, [0; 6]), RET_ERRNO | EPERM);
    assert_eq!(run(&program, X86_64, X32_BIT, [0; 6]), RET_ALLOW, "x32 read");
    assert_eq!(run(&program, X86_64, X32_BIT + 1, [0; 6]), RET_ERRNO | EPERM);
    assert_eq!(run(&program, X86_64, u32::MAX, [0; 6]), RET_ERRNO | ENOSYS);
    assert_eq!(
        run(&program, 0xc000_00b7, 63, [0; 6]),
        RET_KILL_PROCESS,
        "an architecture the profile does not name"
    );
}

#[test]
fn the_upper_half_of_an_int_argument_cannot_smuggle_a_value() {
    let forbidden = arg(0, LinuxSeccompOperator::ScmpCmpNe, 38, 0);
    let program = compile(&profile(vec![("socket", ALLOW, None, vec![forbidden])])).unwrap();
    assert_eq!(run(&program, X86_64, 41, [2, 0, 0, 0, 0, 0]), RET_ALLOW);
    assert_eq!(run(&program, X86_64, 41, [38, 0, 0, 0, 0, 0]), RET_ERRNO | EPERM);
    assert_eq!(
        run(&program, X86_64, 41, [0x1_0000_0026, 0, 0, 0, 0, 0]),
        RET_ERRNO | EPERM
    );
}

fn holds(op: LinuxSeccompOperator, actual: u64, value: u64, two: u64) -> bool {
    use LinuxSeccompOperator as Op;
    match op {
        Op::ScmpCmpNe => actual != value,
        Op::ScmpCmpLt => actual < value,
        Op::ScmpCmpLe => actual <= value,
        Op::ScmpCmpEq => actual == value,
        Op::ScmpCmpGe => actual >= value,
        Op::ScmpCmpGt => actual > value,
        Op::ScmpCmpMaskedEq => actual & value == two,
    }
}

fn any_op() -> impl Strategy<Value = LinuxSeccompOperator> {
    use LinuxSeccompOperator as Op;
    prop::sample::select(vec![
        Op::ScmpCmpNe,
        Op::ScmpCmpLt,
        Op::ScmpCmpLe,
        Op::ScmpCmpEq,
        Op::ScmpCmpGe,
        Op::ScmpCmpGt,
        Op::ScmpCmpMaskedEq,
    ])
}

/// Values around which 64-bit comparisons made of 32-bit ones go wrong.
fn any_value() -> impl Strategy<Value = u64> {
    let edges = vec![
        0,
        1,
        2,
        u64::from(u32::MAX),
        1 << 32,
        (1 << 32) + 1,
        0x7e02_0000,
        u64::MAX - 1,
        u64::MAX,
    ];
    prop_oneof![prop::sample::select(edges), any::<u64>(), 0..8u64]
}

proptest! {
    #[test]
    fn comparisons_agree_with_arithmetic(
        op in any_op(), value in any_value(), two in any_value(), actual in any_value(), index in 0..6usize,
    ) {
        let program = compile(&profile(vec![("ioctl", ALLOW, None, vec![arg(index, op, value, two)])])).unwrap();
        let mut args = [0; 6];
        args[index] = actual;
        let expected = if holds(op, actual, value, two) { RET_ALLOW } else { RET_ERRNO | EPERM };
        prop_assert_eq!(run(&program, X86_64, 16, args), expected);
    }

    #[test]
    fn the_search_agrees_with_the_list(allowed in prop::collection::btree_set(0..400usize, 0..200), nr in 0..470u32) {
        const NAMES: &[&str] = &["read", "write", "open", "close", "stat", "fstat", "mmap", "socket", "clone", "bpf", "openat2", "io_setup", "rseq"];
        let chosen: Vec<&str> = allowed.iter().map(|i| NAMES[i % NAMES.len()]).collect();
        let program = compile(&profile(chosen.iter().map(|name| (*name, ALLOW, None, vec![])).collect())).unwrap();
        let numbers: Vec<u32> = chosen.iter().map(|name| number(Abi::X86_64, name).unwrap()).collect();
        let expected = if numbers.contains(&nr) {
            RET_ALLOW
        } else if numbers.iter().all(|known| nr > *known) {
            RET_ERRNO | ENOSYS
        } else {
            RET_ERRNO | EPERM
        };
        prop_assert_eq!(run(&program, X86_64, nr, [0; 6]), expected);
    }
}

#[test]
fn several_conditions_on_one_argument_are_alternatives_and_on_several_all_must_hold() {
    use LinuxSeccompOperator as Op;
    let either = vec![arg(0, Op::ScmpCmpEq, 1, 0), arg(0, Op::ScmpCmpEq, 2, 0)];
    let both = vec![arg(0, Op::ScmpCmpEq, 1, 0), arg(1, Op::ScmpCmpEq, 2, 0)];
    let program = compile(&profile(vec![
        ("ioctl", ALLOW, None, either),
        ("fcntl", ALLOW, None, both),
    ]))
    .unwrap();
    let verdict = |nr, a, b| run(&program, X86_64, nr, [a, b, 0, 0, 0, 0]) == RET_ALLOW;
    assert_eq!(
        [verdict(16, 1, 0), verdict(16, 2, 0), verdict(16, 3, 0)],
        [true, true, false]
    );
    assert_eq!(
        [verdict(72, 1, 2), verdict(72, 1, 3), verdict(72, 2, 2)],
        [true, false, false]
    );
}
