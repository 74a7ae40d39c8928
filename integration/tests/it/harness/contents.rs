//! Containers and images whose files say everything that a storage driver has to keep.

use super::{Engine, Image, Layer};

/// Changes the container's files on its first start, in all the ways there are; prints everything that can be seen of
/// them on every start.
const SCRIPT: &str = r#"
if [ ! -e /written ]; then
  mkdir -p /new/deep/er && echo content > /new/deep/er/file && echo other > /new/other
  ln /new/deep/er/file /new/link && ln -s nowhere/at/all /new/symbolic && mkfifo -m 640 /new/fifo
  chmod 4751 /new/other && chown 1000:50 /new/deep && chown -h 7:8 /new/symbolic && touch -d '2001-02-03 04:05:06' /new/other
  rm /kept/removed && rm -r /replaced && mkdir /replaced && echo again > /replaced/own
  echo appended >> /kept/changed && mv /kept/moved /kept/away && chmod 1777 / && rm -r /kept/tree
  ln /kept/alone /new/together && echo more >> /kept/noted
  dd if=/dev/zero of=/new/sparse bs=1 count=1 seek=5000000 2>/dev/null
  dd if=/dev/zero of=/new/big bs=1024 count=3000 2>/dev/null && touch /written
fi
cd / && stat -c '%n %f %u %g' . && find kept new replaced hidden written | sort | while read -r f; do
  if [ -L "$f" ]; then echo "$f $(stat -c '%f %u %g' "$f") $(readlink "$f")"
  elif [ -f "$f" ]; then echo "$(stat -c '%n %f %u %g %s %h %Y' "$f") $(md5sum < "$f")"
  else stat -c '%n %f %u %g' "$f"; fi
done; ls gone hidden/below 2>/dev/null || true
[ "$(stat -c %b new/sparse)" -gt 1000 ] || echo "the hole is a hole"
"#;

/// An image of three layers on busybox with files to change, whiteouts and an opaque directory.
pub(crate) fn layered_image(name: &str) -> String {
    let below = Layer::new()
        .dir("kept")
        .dir("kept/tree")
        .file("kept/tree/leaf", b"leaf")
        .file("kept/removed", b"removed")
        .file("kept/changed", b"changed\n")
        .file_of("kept/moved", 0o640, (12, 34), b"moved")
        .file("kept/alone", b"alone")
        .xattr_for_next("user.note", "kept")
        .file("kept/noted", b"noted\n")
        .file("kept/linked", b"linked")
        .hardlink("kept/twin", "kept/linked")
        .dir("replaced")
        .file("replaced/old", b"old")
        .dir("hidden")
        .file("hidden/below", b"below")
        .file("gone", b"gone");
    let above = Layer::new()
        .whiteout("gone")
        .dir("hidden")
        .opaque("hidden")
        .file("hidden/above", b"above")
        .symlink("kept/pointer", "changed");
    Image::busybox().layer(below).layer(above).push(name)
}

/// A container that has changed its files.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) name: String,
    files: String,
}

impl Writer {
    /// Makes it, starts it, waits for its end.
    pub(crate) fn new(engine: &Engine, name: &str, image: &str) -> Self {
        let words = [
            "create",
            "--name",
            name,
            "--network",
            "none",
            image,
            "sh",
            "-c",
            SCRIPT,
        ];
        engine.docker(words).ok();
        let files = engine.docker(["start", "-a", name]).ok();
        for text in ["new/link", "written", "the hole is a hole"] {
            assert!(files.contains(text), "{files}");
        }
        Self {
            name: name.to_owned(),
            files,
        }
    }

    /// Starts it again: its files are as they were.
    pub(crate) fn has_its_files(&self, engine: &Engine) {
        let files = engine.docker(["start", "-a", &self.name]).ok();
        let (then, now): (Vec<_>, Vec<_>) = (self.files.lines().collect(), files.lines().collect());
        let lost: Vec<_> = then.iter().filter(|line| !now.contains(line)).collect();
        let new: Vec<_> = now.iter().filter(|line| !then.contains(line)).collect();
        assert!(
            lost.is_empty() && new.is_empty(),
            "container {}: lost {lost:#?}, new {new:#?}",
            self.name
        );
    }
}
