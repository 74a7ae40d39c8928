//! `/proc/self/mountinfo` (proc(5)).

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Type of the topmost file system mounted on `target`, an absolute path without links.
pub(super) fn file_system_at(target: &Path) -> io::Result<Option<String>> {
    Ok(find(
        &fs::read("/proc/self/mountinfo")?,
        target.as_os_str().as_bytes(),
    ))
}

fn find(table: &[u8], target: &[u8]) -> Option<String> {
    // Later lines lie over earlier ones.
    table.split(|&b| b == b'\n').rev().find_map(|line| {
        let mut fields = line.split(|&b| b == b' ');
        let point = fields.nth(4)?;
        if unescape(point) != target {
            return None;
        }
        // Optional fields end with a lone dash; then comes the type.
        let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
        rest.next().map(|kind| String::from_utf8_lossy(kind).into_owned())
    })
}

/// Blanks, tabs, line ends and backslashes are written as three octal digits.
pub(crate) fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let code = tail.get(..3).filter(|_| first == b'\\').and_then(|digits| {
            let text = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(text, 8).ok()
        });
        match code {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw
30 22 0:5 / /a\\040b rw - tmpfs tmpfs rw
31 30 0:6 / /a\\040b rw shared:3 - overlay overlay rw,lowerdir=x
";

    #[test]
    fn the_topmost_mount_counts() {
        assert_eq!(find(TABLE, b"/a b").as_deref(), Some("overlay"));
        assert_eq!(find(TABLE, b"/").as_deref(), Some("ext4"));
        assert_eq!(find(TABLE, b"/a"), None);
        assert_eq!(unescape(b"a\\134b\\9"), b"a\\b\\9");
    }
}
