//! PAX extended headers (POSIX.1-2001 pax, "length keyword=value\n" records): reading and writing.
//!
//! Values are bytes: an extended attribute may hold newlines and zeros, so records are cut by their length and
//! never by looking for line ends.

use crate::entry::Time;
use crate::error::{Error, Result};

/// Prefix of the records that carry extended attributes.
pub(crate) const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// The records of one extended header, in order.
pub(crate) fn records(data: &[u8]) -> Result<Vec<(&[u8], &[u8])>> {
    let mut rest = data;
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (record, tail) = split_record(rest).ok_or_else(|| Error::corrupt("tar: malformed PAX record"))?;
        found.push(record);
        rest = tail;
    }
    Ok(found)
}

/// A keyword and its value.
type Record<'a> = (&'a [u8], &'a [u8]);

fn split_record(data: &[u8]) -> Option<(Record<'_>, &[u8])> {
    // A length has at most 20 digits.
    let space = data.iter().take(21).position(|&b| b == b' ')?;
    let length = usize::try_from(decimal(&data[..space])?).ok()?;
    if length <= space + 1 || length > data.len() || data[length - 1] != b'\n' {
        return None;
    }
    let body = &data[space + 1..length - 1];
    let equals = body.iter().position(|&b| b == b'=')?;
    let (key, value) = (&body[..equals], &body[equals + 1..]);
    let is_name = matches!(key, b"path" | b"linkpath" | b"uname" | b"gname");
    if key.is_empty() || (is_name && value.contains(&0)) {
        return None;
    }
    Some(((key, value), &data[length..]))
}

/// A non-negative decimal number without sign or blanks.
pub(crate) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |n, b| {
        b.is_ascii_digit().then_some(())?;
        n.checked_mul(10)?.checked_add(u64::from(b - b'0'))
    })
}

/// Seconds with an optional fraction and sign; digits beyond nanoseconds are cut off.
pub(crate) fn time(text: &[u8]) -> Option<Time> {
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = digits.splitn(2, |&b| b == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanoseconds = 0u32;
    if let Some(fraction) = parts.next() {
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        for place in 0..9 {
            nanoseconds = nanoseconds * 10 + fraction.get(place).map_or(0, |b| u32::from(b - b'0'));
        }
    }
    Some(match (negative, nanoseconds) {
        (false, _) => Time { seconds, nanoseconds },
        (true, 0) => Time {
            seconds: -seconds,
            nanoseconds: 0,
        },
        (true, n) => Time {
            seconds: -seconds - 1,
            nanoseconds: 1_000_000_000 - n,
        },
    })
}

/// Appends a record to `out`.
pub(crate) fn push_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    // The length counts its own digits.
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(format!("{length} ").as_bytes());
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// A time as a PAX value, without trailing zeros.
pub(crate) fn time_text(time: Time) -> String {
    let (sign, seconds, nanoseconds) = match (time.seconds, time.nanoseconds) {
        (s, n) if s >= 0 => ("", s.unsigned_abs(), n),
        (s, 0) => ("-", s.unsigned_abs(), 0),
        (s, n) => ("-", (s + 1).unsigned_abs(), 1_000_000_000 - n),
    };
    if nanoseconds == 0 {
        return format!("{sign}{seconds}");
    }
    format!("{sign}{seconds}.{nanoseconds:09}")
        .trim_end_matches('0')
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn records_come_back(pairs in proptest::collection::vec(
            ("[A-Za-z.]{1,20}", proptest::collection::vec(any::<u8>(), 0..300)), 0..8)) {
            let mut data = Vec::new();
            for (key, value) in &pairs {
                // Names with zeros are refused by design.
                prop_assume!(!matches!(key.as_str(), "path" | "linkpath" | "uname" | "gname"));
                push_record(&mut data, key.as_bytes(), value);
            }
            let back = records(&data).unwrap();
            prop_assert_eq!(back.len(), pairs.len());
            for ((k, v), (key, value)) in back.iter().zip(&pairs) {
                prop_assert_eq!(*k, key.as_bytes());
                prop_assert_eq!(*v, &value[..]);
            }
        }

        #[test]
        fn times_come_back(seconds in -10_000_000_000i64..10_000_000_000, nanoseconds in 0u32..1_000_000_000) {
            let t = Time { seconds, nanoseconds };
            prop_assert_eq!(time(time_text(t).as_bytes()), Some(t));
        }

        #[test]
        fn garbage_never_panics(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = records(&data);
            let _ = time(&data);
        }
    }

    #[test]
    fn hostile_records_are_refused() {
        for bad in [
            &b"5 a=b\n"[..],
            b"6 a=b",
            b"7 a=b\n",
            b"0 a=b\n",
            b"99999999999999999999 a=b\n",
            b"12 path=a\0b\n",
            b"6 =ab\n",
            b"5 ab\n",
        ] {
            assert!(records(bad).is_err(), "{bad:?}");
        }
        assert_eq!(records(b"6 a=b\n").unwrap(), [(&b"a"[..], &b"b"[..])]);
    }
}
