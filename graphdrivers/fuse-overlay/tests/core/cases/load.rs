//! Many files, many threads, few descriptors.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::OFlags;
use rustix::io::Errno;
use skiff_fuse_overlay::overlay::{Lookup, ROOT};

use crate::fs::{Fs, NOBODY_SPECIAL, fill};

pub(super) fn open_descriptors(below: &std::path::Path) -> usize {
    // Tests run beside each other in one process: only those that lead into this overlay count.
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.starts_with(below))
        .count()
}

pub(crate) fn descriptors_do_not_leak() {
    let fs = Fs::new(2, |lower| {
        for i in 0..20 {
            fill(&lower[i % 2], &[&format!("d{i}/f=1"), &format!("d{i}/g=1")]);
        }
    });
    let root = fs.upper("").parent().unwrap().to_owned();
    let round = |round: usize| {
        for i in 0..20 {
            let file = format!("d{i}/f");
            assert_eq!(fs.text(&file).len(), 1);
            assert!(!fs.names(&format!("d{i}")).is_empty());
            let handle = fs.open(&file, OFlags::RDONLY).unwrap().handle;
            fs.overwrite(&file, "2").unwrap();
            fs.overlay.release(handle);
            fs.write(&format!("d{i}/new{round}"), "new").unwrap();
            let opened = fs.open(&format!("d{i}/new{round}"), OFlags::RDWR).unwrap().handle;
            fs.unlink(&format!("d{i}/new{round}")).unwrap();
            fs.overlay.release(opened);
            fs.mkdir(&format!("d{i}/sub")).unwrap();
            fs.rename(&format!("d{i}/sub"), &format!("d{i}/sub2")).unwrap();
            fs.rmdir(&format!("d{i}/sub2")).unwrap();
            assert_eq!(fs.unlink("nothing").unwrap_err(), Errno::NOENT);
        }
    };
    round(0);
    // With nothing known and nothing open, what stays open are the layers' roots and the work directories.
    let after_one = open_descriptors(&root);
    assert_eq!(fs.overlay.inodes(), 1);
    assert!(after_one <= 5, "{after_one}");
    for i in 1..12 {
        round(i);
    }
    assert_eq!(open_descriptors(&root), after_one);
    assert_eq!(fs.overlay.inodes(), 1);
    fs.assert_work_is_empty();
    let directory = fs.into_directory();
    assert_eq!(open_descriptors(directory.path()), 0);
}

pub(crate) fn few_descriptors_are_enough_for_many_directories() {
    let fs = Fs::with(
        2,
        |lower| {
            for i in 0..40 {
                for j in 0..10 {
                    fill(&lower[usize::from(i % 2 == 0)], &[&format!("a{i}/b{j}/c/f=1")]);
                }
            }
        },
        |config| config.directory_descriptors = Some(16),
    );
    let root = fs.upper("").parent().unwrap().to_owned();
    // The kernel knows everything, and everything is used in turn.
    let mut held = Vec::new();
    for i in 0..40 {
        for j in 0..10 {
            held.push(fs.find(&format!("a{i}")).unwrap());
            held.push(fs.find(&format!("a{i}/b{j}")).unwrap());
            held.push(fs.find(&format!("a{i}/b{j}/c")).unwrap());
            held.push(fs.find(&format!("a{i}/b{j}/c/f")).unwrap());
        }
    }
    let open = open_descriptors(&root);
    assert!(open <= 16 + 5, "{open} descriptors");
    for held in &held {
        fs.overlay.getattr(held.node, None).unwrap();
    }
    fs.mkdir("new").unwrap();
    for i in 0..40 {
        fs.mkdir(&format!("new/n{i}")).unwrap();
        fs.write(&format!("new/n{i}/f"), "n").unwrap();
        held.push(fs.find(&format!("new/n{i}")).unwrap());
        held.push(fs.find(&format!("new/n{i}/f")).unwrap());
    }
    // A directory that moved is found at its new path when it is opened again, one that is gone is still there.
    fs.rename("new", "a0/moved").unwrap();
    for i in 0..20 {
        fs.unlink(&format!("a0/moved/n{i}/f")).unwrap();
        fs.rmdir(&format!("a0/moved/n{i}")).unwrap();
    }
    for held in &held {
        fs.overlay.getattr(held.node, None).unwrap();
    }
    for i in 20..40 {
        assert_eq!(fs.text(&format!("a0/moved/n{i}/f")), "n");
    }
    drop(held);
    assert!(open_descriptors(&root) <= 16 + 5);
}

/// Threads make, move and remove names in the same few directories; in the end memory, upper directory and a new
/// mount agree, and each file that was made and not removed is there once.
pub(crate) fn threads_agree_in_the_end() {
    const THREADS: usize = 6;
    const ROUNDS: usize = 120;
    let fs = Fs::with(
        1,
        |lower| {
            for d in 0..4 {
                for i in 0..40 {
                    fill(&lower[0], &[&format!("d{d}/low{i}=low")]);
                }
            }
        },
        |config| config.directory_descriptors = Some(8),
    );
    let removed = AtomicUsize::new(0);
    let survivors = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for t in 0..THREADS {
            let (fs, removed, survivors) = (&fs, &removed, &survivors);
            scope.spawn(move || {
                let mut random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(t as u64 + 1);
                let mut next = |n: u64| {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    random % n
                };
                let mut mine: BTreeMap<String, String> = BTreeMap::new();
                for round in 0..ROUNDS {
                    match next(8) {
                        0 | 1 => {
                            let path = format!("d{}/t{t}-{round}", next(4));
                            fs.write(&path, &path).unwrap();
                            mine.insert(path.clone(), path);
                        }
                        2 => {
                            if let Some((path, contents)) = mine.pop_first() {
                                let to = format!("d{}/m{t}-{round}", next(4));
                                fs.rename(&path, &to).unwrap();
                                mine.insert(to, contents);
                            }
                        }
                        3 => {
                            if let Some((path, _)) = mine.pop_last() {
                                fs.unlink(&path).unwrap();
                                assert!(!fs.exists(&path));
                            }
                        }
                        // Contended: several threads want the same lower file.
                        4 => match fs.unlink(&format!("d{}/low{}", next(4), next(20))) {
                            Ok(()) => drop(removed.fetch_add(1, Ordering::Relaxed)),
                            Err(errno) => assert_eq!(errno, Errno::NOENT),
                        },
                        5 => {
                            let path = format!("d{}/low{}", next(4), 20 + next(20));
                            fs.overwrite(&path, "LOW").unwrap();
                            assert_eq!(fs.text(&path), "LOW");
                        }
                        6 => {
                            let directory = format!("d{}/dir{}", next(4), next(3));
                            match fs.mkdir(&directory) {
                                Ok(_) | Err(Errno::EXIST) => {}
                                Err(errno) => panic!("mkdir {errno}"),
                            }
                            match fs.rename(&directory, &format!("d{}/dir{}", next(4), next(3))) {
                                Ok(()) | Err(Errno::NOENT) => {}
                                Err(errno) => panic!("rename {errno}"),
                            }
                            match fs.rmdir(&directory) {
                                Ok(()) | Err(Errno::NOENT) => {}
                                Err(errno) => panic!("rmdir {errno}"),
                            }
                        }
                        _ => {
                            let names = fs.list_plus(&format!("d{}", next(4))).unwrap();
                            assert!(names.contains_key("low39"), "{names:?}");
                        }
                    }
                }
                survivors.lock().unwrap().append(&mut mine);
            });
        }
    });
    let survivors = survivors.into_inner().unwrap();
    let check = |fs: &Fs| {
        let mut low = 0;
        let mut found = BTreeMap::new();
        for d in 0..4 {
            for name in fs.names(&format!("d{d}")) {
                let path = format!("d{d}/{name}");
                if name.starts_with("low") {
                    low += 1;
                } else if !name.starts_with("dir") {
                    let text = fs.text(&path);
                    found.insert(path, text);
                }
            }
        }
        assert_eq!(found, survivors);
        assert_eq!(low + removed.load(Ordering::Relaxed), 160);
    };
    check(&fs);
    fs.assert_work_is_empty();
    assert_eq!(fs.overlay.inodes(), 1);
    check(&fs.again());
}

pub(crate) fn deep_trees_work() {
    const DEPTH: usize = 300;
    let fs = Fs::with(1, |_| {}, |config| config.directory_descriptors = Some(64));
    let mut nodes = vec![ROOT];
    let name = "d".repeat(100);
    let name = OsStr::new(&name);
    for _ in 0..DEPTH {
        let entry = fs
            .overlay
            .mkdir(&NOBODY_SPECIAL, *nodes.last().unwrap(), name, 0o755)
            .unwrap();
        nodes.push(entry.node);
    }
    // The deepest is opened again by a path far longer than PATH_MAX.
    for &node in nodes.iter().rev() {
        fs.overlay.getattr(node, None).unwrap();
        let Lookup::Negative(_) = fs.overlay.lookup(node, OsStr::new("x")).unwrap() else {
            panic!("x?")
        };
    }
    fs.overlay.getattr(nodes[DEPTH], None).unwrap();
    while nodes.len() > 1 {
        let node = nodes.pop().unwrap();
        fs.overlay.rmdir(*nodes.last().unwrap(), name).unwrap();
        fs.overlay.forget(node, 1);
    }
    assert_eq!(fs.overlay.inodes(), 1);
}
