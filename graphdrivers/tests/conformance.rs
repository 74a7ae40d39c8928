use skiff_graphdrivers::*;
#[test]
fn smoke() {
    for name in ["vfs", "overlay2"] {
        let d = tempfile::tempdir().unwrap();
        let s = select(d.path(), Some(name), &[]).unwrap();
        println!("{s:?} {:?}", s.driver.status());
        let k = ActiveId::new("a").unwrap();
        let l = LayerId::new(format!("sha256:{}", "1".repeat(64))).unwrap();
        let l2 = LayerId::new(format!("sha256:{}", "2".repeat(64))).unwrap();
        s.driver.prepare(&k, None, &PrepareOptions::default()).unwrap();
        let t = s.driver.apply_target(&k).unwrap();
        let mut b = tar::Builder::new(Vec::new());
        let mut h = tar::Header::new_gnu();
        h.set_size(3);
        h.set_mode(0o644);
        b.append_data(&mut h, "etc/x", &b"abc"[..]).unwrap();
        b.append_data(&mut h, "etc/y", &b"abc"[..]).unwrap();
        let tarred = b.into_inner().unwrap();
        println!(
            "{:?}",
            skiff_archive::apply(&tarred[..], &t, &Default::default()).unwrap()
        );
        s.driver.commit(&k, &l).unwrap();
        s.driver
            .prepare(&k, Some(&l), &PrepareOptions::default())
            .unwrap();
        let t = s.driver.apply_target(&k).unwrap();
        let mut b = tar::Builder::new(Vec::new());
        let mut h = tar::Header::new_gnu();
        h.set_size(0);
        h.set_mode(0o644);
        b.append_data(&mut h, "etc/.wh.x", &b""[..]).unwrap();
        let tarred = b.into_inner().unwrap();
        skiff_archive::apply(&tarred[..], &t, &Default::default()).unwrap();
        s.driver.commit(&k, &l2).unwrap();
        s.driver
            .prepare(&k, Some(&l2), &PrepareOptions::default())
            .unwrap();
        let m = s
            .driver
            .mounts(SnapshotRef::Active(&k), Access::ReadWrite)
            .unwrap();
        let target = d.path().join("mnt");
        std::fs::create_dir(&target).unwrap();
        let mounter = Mounter::new();
        mounter.mount(&m, &target).unwrap();
        println!(
            "{}",
            std::fs::read_to_string("/proc/self/mountinfo")
                .unwrap()
                .lines()
                .last()
                .unwrap()
        );
        let names: Vec<_> = std::fs::read_dir(target.join("etc"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names, ["y"]);
        std::fs::remove_file(target.join("etc/y")).unwrap();
        mounter.unmount(&target).unwrap();
        let mut out = Vec::new();
        println!(
            "{:?}",
            skiff_archive::diff(
                &s.driver.diff_source(SnapshotRef::Active(&k)).unwrap().tree(),
                &mut out
            )
        );
        let names: Vec<_> = tar::Archive::new(&out[..])
            .entries()
            .unwrap()
            .map(|e| e.unwrap().path().unwrap().into_owned())
            .collect();
        println!("{names:?}");
        println!("{:?}", s.driver.remove(SnapshotRef::Layer(&l)));
        println!("{:?}", s.driver.cleanup(&Default::default()));
        println!(
            "{:?}",
            std::fs::read_dir(d.path())
                .unwrap()
                .map(|e| e.unwrap().file_name())
                .collect::<Vec<_>>()
        );
    }
}
