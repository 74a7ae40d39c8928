//! Files used without handles, as by a kernel that does not ask for opens.

use rustix::fs::OFlags;
use rustix::io::Errno;
use skiff_fuse_overlay::overlay::{Overlay, ROOT, SetAttr, SetTime, Time};

use crate::cases::load::open_descriptors;
use crate::fs::{Fs, NOBODY_SPECIAL, fill};

fn read(fs: &Fs, node: u64) -> String {
    String::from_utf8(fs.read_handle(Overlay::handle_of_node(node)).unwrap()).unwrap()
}

pub(crate) fn files_are_read_and_written_without_handles() {
    let fs = Fs::new(1, |lower| fill(&lower[0], &["f=lower contents", "d/x=1", "l->f"]));
    let f = fs.find("f").unwrap();
    let handle = Overlay::handle_of_node(f.node);
    assert_eq!(read(&fs, f.node), "lower contents");
    assert_eq!(fs.overlay.lseek(handle, 0, 4).unwrap(), 14);
    fs.overlay.fsync(handle, false).unwrap();
    assert!(!fs.upper("f").exists(), "copied up by reading");
    assert_eq!(fs.overlay.write(handle, 0, b"UPPER", false).unwrap(), 5);
    assert_eq!(read(&fs, f.node), "UPPER contents");
    assert_eq!(std::fs::read_to_string(fs.upper("f")).unwrap(), "UPPER contents");
    fs.overlay.fallocate(handle, 0, 100, 0).unwrap();
    fs.overlay.fsync(handle, true).unwrap();
    // A request may name a handle that nobody opened.
    assert_eq!(fs.overlay.getattr(f.node, Some(0)).unwrap().size, 100);
    let size = SetAttr {
        size: Some(5),
        ..SetAttr::default()
    };
    assert_eq!(fs.overlay.setattr(f.node, Some(0), &size).unwrap().size, 5);
    let x = fs.find("d/x").unwrap();
    let copied = fs
        .overlay
        .copy_file_range(handle, 1, Overlay::handle_of_node(x.node), 1, 3)
        .unwrap();
    assert_eq!((copied, read(&fs, x.node).as_str()), (3, "1PPE"));
    for node in [ROOT, fs.find("l").unwrap().node] {
        let outcome = fs.overlay.read(Overlay::handle_of_node(node), 0, &mut [0; 4]);
        assert_eq!(outcome.unwrap_err(), Errno::BADF);
    }
    assert_eq!(
        fs.overlay
            .read(Overlay::handle_of_node(1 << 40), 0, &mut [0; 4])
            .unwrap_err(),
        Errno::STALE
    );
    let read_only = Fs::with(1, |lower| fill(&lower[0], &["f=1"]), |config| config.upper = None);
    let f = read_only.find("f").unwrap();
    assert_eq!(read(&read_only, f.node), "1");
    let outcome = read_only
        .overlay
        .write(Overlay::handle_of_node(f.node), 0, b"2", false);
    assert_eq!(outcome.unwrap_err(), Errno::ROFS);
}

pub(crate) fn a_copy_up_is_seen_by_all_ways_to_the_file() {
    let fs = Fs::new(1, |lower| fill(&lower[0], &["f=old contents"]));
    let f = fs.find("f").unwrap();
    let opened = fs.overlay.open(f.node, 0).unwrap().handle;
    assert_eq!(read(&fs, f.node), "old contents");
    // By another handle, by none, and by an attribute.
    fs.overwrite("f", "new").unwrap();
    assert_eq!(read(&fs, f.node), "new contents");
    fs.overlay
        .write(Overlay::handle_of_node(f.node), 4, b"C", false)
        .unwrap();
    assert_eq!(fs.read_handle(opened).unwrap(), b"new Contents");
    fs.overlay.release(opened);
    fs.rename("f", "g").unwrap();
    assert_eq!(read(&fs, f.node), "new Contents");
}

pub(crate) fn nameless_files_work_without_handles() {
    let fs = Fs::new(1, |lower| fill(&lower[0], &["low=lower", "unread=lower"]));
    fs.write("up", "upper").unwrap();
    for path in ["low", "up", "unread"] {
        let node = fs.find(path).unwrap();
        if path != "unread" {
            read(&fs, node.node);
        }
        fs.unlink(path).unwrap();
        assert_eq!(
            &read(&fs, node.node)[2..],
            if path == "up" { "per" } else { "wer" }
        );
        fs.overlay
            .write(Overlay::handle_of_node(node.node), 0, b"XX", false)
            .unwrap();
        assert_eq!(&read(&fs, node.node)[..2], "XX");
        let attr = fs.overlay.getattr(node.node, None).unwrap();
        assert_eq!((attr.size, attr.nlink), (5, 0), "{path}");
        assert!(!fs.exists(path));
    }
}

/// What the kernel sends after an unlink when it caches writes.
pub(crate) fn last_times_of_removed_files_copy_nothing() {
    let fs = Fs::new(1, |lower| fill(&lower[0], &["low=lower"]));
    fs.write("up", "upper").unwrap();
    let moment = Time {
        seconds: 77,
        nanoseconds: 7,
    };
    let change = SetAttr {
        mtime: Some(SetTime::At(moment)),
        ..SetAttr::default()
    };
    for path in ["low", "up"] {
        let node = fs.find(path).unwrap();
        fs.unlink(path).unwrap();
        let attr = fs.overlay.setattr(node.node, None, &change).unwrap();
        assert_eq!((attr.mtime, attr.nlink, attr.size), (moment, 0, 5));
        // It can still become anything.
        fs.overlay
            .write(Overlay::handle_of_node(node.node), 0, b"123456", false)
            .unwrap();
        let mode = SetAttr {
            mode: Some(0o600),
            ..change
        };
        let attr = fs.overlay.setattr(node.node, None, &mode).unwrap();
        assert_eq!((attr.mode & 0o777, attr.mtime, attr.size), (0o600, moment, 6));
    }
    // Open: somebody may look.
    fs.write("open", "1").unwrap();
    let node = fs.find("open").unwrap();
    let handle = fs.overlay.open(node.node, OFlags::RDWR.bits()).unwrap().handle;
    fs.unlink("open").unwrap();
    fs.overlay.setattr(node.node, Some(handle), &change).unwrap();
    assert_eq!(fs.overlay.getattr(node.node, Some(handle)).unwrap().mtime, moment);
    fs.overlay.release(handle);
}

pub(crate) fn few_descriptors_are_enough_for_many_files() {
    let fs = Fs::with(
        1,
        |lower| {
            for i in 0..300 {
                fill(&lower[0], &[&format!("d{}/f{i}={i}", i % 10)]);
            }
        },
        |config| config.directory_descriptors = Some(16),
    );
    let root = fs.upper("").parent().unwrap().to_owned();
    let nodes: Vec<_> = (0..300)
        .map(|i| fs.find(&format!("d{}/f{i}", i % 10)).unwrap())
        .collect();
    for round in 0..3 {
        for (i, held) in nodes.iter().enumerate() {
            assert_eq!(read(&fs, held.node), i.to_string());
            if i % 3 == round {
                let handle = Overlay::handle_of_node(held.node);
                fs.overlay
                    .write(handle, 0, i.to_string().as_bytes(), false)
                    .unwrap();
            }
        }
        let open = open_descriptors(&root);
        assert!(open <= 16 + 5, "{open}");
    }
    drop(nodes);
    assert!(open_descriptors(&root) <= 16 + 5);
    assert_eq!(fs.overlay.inodes(), 1);
}

pub(crate) fn files_are_made_without_handles() {
    let fs = Fs::with(
        1,
        |lower| fill(&lower[0], &["gone=1", "there=1"]),
        |config| config.directory_descriptors = Some(16),
    );
    let root = fs.upper("").parent().unwrap().to_owned();
    fs.unlink("gone").unwrap();
    let create = |name: &str, flags: OFlags| {
        let name = std::ffi::OsStr::new(name);
        fs.overlay
            .create_handleless(&NOBODY_SPECIAL, ROOT, name, 0o200, flags.bits())
    };
    let exclusive = OFlags::WRONLY | OFlags::EXCL;
    let mut nodes = Vec::new();
    for i in 0..100 {
        let entry = create(&format!("f{i}"), exclusive).unwrap();
        let handle = Overlay::handle_of_node(entry.node);
        fs.overlay.write(handle, 0, b"contents", false).unwrap();
        assert_eq!(read(&fs, entry.node), "contents");
        nodes.push(entry.node);
    }
    let open = open_descriptors(&root);
    assert!(open <= 16 + 5, "{open}");
    assert_eq!(create("f1", exclusive).unwrap_err(), Errno::EXIST);
    let again = create("f1", OFlags::WRONLY).unwrap();
    assert_eq!((again.node, again.attr.size), (nodes[1], 8));
    let emptied = create("there", OFlags::WRONLY | OFlags::TRUNC).unwrap();
    assert_eq!(emptied.attr.size, 0);
    let back = create("gone", exclusive).unwrap();
    assert_eq!(read(&fs, back.node), "");
    let nameless = fs
        .overlay
        .tmpfile_handleless(&NOBODY_SPECIAL, ROOT, 0o600, OFlags::RDWR.bits())
        .unwrap();
    let handle = Overlay::handle_of_node(nameless.node);
    fs.overlay.write(handle, 0, b"tmp", false).unwrap();
    assert_eq!(read(&fs, nameless.node), "tmp");
    nodes.extend([again.node, emptied.node, back.node, nameless.node]);
    for node in nodes {
        fs.overlay.forget(node, 1);
    }
    assert_eq!(fs.overlay.inodes(), 1);
    assert!(open_descriptors(&root) <= 5);
}
