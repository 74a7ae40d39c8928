//! Signal names as clients write them.

use std::str::FromStr as _;

use nix::sys::signal::Signal;

use crate::error::{Error, Result};

/// SIGKILL's number.
pub(super) const KILL: i32 = Signal::SIGKILL as i32;
/// SIGTERM's number.
pub(super) const TERM: i32 = Signal::SIGTERM as i32;

/// First and last real-time signal, as glibc counts them (signal(7)).
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

/// Parses `TERM`, `SIGTERM`, `sigterm`, `15`, `RTMIN+3`, `SIGRTMAX-1`.
///
/// # Errors
/// `InvalidParameter` "invalid signal: x".
pub(crate) fn parse(text: &str) -> Result<i32> {
    let invalid = || Error::invalid(format!("invalid signal: {text}"));
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) {
            Ok(number)
        } else {
            Err(invalid())
        };
    }
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(number) = real_time(bare) {
        return if REAL_TIME.contains(&number) {
            Ok(number)
        } else {
            Err(invalid())
        };
    }
    // Old names that signal(7) lists as synonyms.
    let bare = match bare {
        "CLD" => "CHLD",
        "POLL" => "IO",
        "IOT" => "ABRT",
        other => other,
    };
    Signal::from_str(&format!("SIG{bare}"))
        .map(|signal| signal as i32)
        .map_err(|_| invalid())
}

fn real_time(bare: &str) -> Option<i32> {
    let (base, offset, sign) = if let Some(rest) = bare.strip_prefix("RTMIN") {
        (*REAL_TIME.start(), rest, '+')
    } else {
        (*REAL_TIME.end(), bare.strip_prefix("RTMAX")?, '-')
    };
    if offset.is_empty() {
        return Some(base);
    }
    let distance: i32 = offset.strip_prefix(sign)?.parse().ok()?;
    Some(if sign == '+' {
        base + distance
    } else {
        base - distance
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_spellings() {
        for (text, number) in [
            ("TERM", 15),
            ("sigterm", 15),
            ("SIGKILL", 9),
            ("9", 9),
            ("64", 64),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("CLD", 17),
            ("SIGWINCH", 28),
        ] {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for text in [
            "", "0", "65", "-1", "SIG", "BOGUS", "RTMIN-1", "RTMAX+1", "RTMIN+99",
        ] {
            assert_eq!(
                parse(text).unwrap_err().to_string(),
                format!("invalid signal: {text}")
            );
        }
    }
}
