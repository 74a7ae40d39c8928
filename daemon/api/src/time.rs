//! Times as Docker's API writes and reads them.

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::error::ApiError;

/// Go's zero time, which stands for "never".
pub(crate) const ZERO: &str = "0001-01-01T00:00:00Z";

/// RFC 3339 with as many fractional digits as needed (Go's `RFC3339Nano`); never is year 1.
pub(crate) fn rfc3339(time: Option<Timestamp>) -> String {
    time.map_or_else(|| ZERO.to_owned(), |time| time.to_string())
}

/// RFC 3339 with nine fractional digits, as in front of log lines.
pub(crate) fn rfc3339_fixed(time: Timestamp) -> String {
    format!("{time:.9}")
}

/// Parses `since` and `until`: Unix seconds with an optional fraction (what the CLI sends), a Go duration
/// before now (`10m`, `1h30m`), or a date and time, in UTC unless it says otherwise. Empty and `0` are no bound.
///
/// # Errors
/// 400 for anything else.
pub(crate) fn parse_bound(text: &str, now: Timestamp) -> Result<Option<Timestamp>, ApiError> {
    if text.is_empty() || text == "0" {
        return Ok(None);
    }
    unix(text)
        .or_else(|| now.checked_sub(go_duration(text)?).ok())
        .or_else(|| text.parse().ok())
        .or_else(|| utc(text.parse::<DateTime>().ok()?))
        .or_else(|| utc(text.parse::<Date>().ok()?.into()))
        .map(Some)
        .ok_or_else(|| ApiError::invalid(format!("failed to parse value as time or duration: {text:?}")))
}

fn utc(time: DateTime) -> Option<Timestamp> {
    time.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}

/// `SECONDS[.FRACTION]`; the fraction counts as decimal digits, nine at most.
fn unix(text: &str) -> Option<Timestamp> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().ok()?;
    if fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanoseconds: i32 = format!("{fraction:0<9}").parse().ok()?;
    Timestamp::new(seconds, nanoseconds).ok()
}

/// Go's `time.ParseDuration`: `300ms`, `-1.5h`, `2h45m`.
fn go_duration(text: &str) -> Option<SignedDuration> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let mut total = SignedDuration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        // Two-letter units first: `m` begins `ms`.
        let units = [
            ("ns", 1e-9),
            ("us", 1e-6),
            ("µs", 1e-6),
            ("ms", 1e-3),
            ("h", 3600.0),
            ("m", 60.0),
            ("s", 1.0),
        ];
        let (unit, seconds) = units.iter().find(|(unit, _)| rest.starts_with(unit))?;
        rest = &rest[unit.len()..];
        total = total.checked_add(SignedDuration::try_from_secs_f64(number * seconds).ok()?)?;
    }
    Some(if negative { -total } else { total })
}

/// A duration in words, rounded as Docker's lists round it ("About an hour", "2 weeks").
pub(crate) fn human(duration: SignedDuration) -> String {
    let seconds = duration.as_secs();
    let minutes = seconds / 60;
    let hours = (seconds + 1800) / 3600;
    match (seconds, minutes, hours) {
        (..1, _, _) => "Less than a second".to_owned(),
        (1, _, _) => "1 second".to_owned(),
        (..60, _, _) => format!("{seconds} seconds"),
        (_, 1, _) => "About a minute".to_owned(),
        (_, ..60, _) => format!("{minutes} minutes"),
        (_, _, 1) => "About an hour".to_owned(),
        (_, _, ..48) => format!("{hours} hours"),
        (_, _, ..336) => format!("{} days", hours / 24),
        (_, _, ..1440) => format!("{} weeks", hours / 24 / 7),
        (_, _, ..17520) => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn times_are_written_as_go_writes_them() {
        assert_eq!(rfc3339(None), ZERO);
        assert_eq!(rfc3339(Some(at("2026-11-21T10:00:00Z"))), "2026-11-21T10:00:00Z");
        assert_eq!(
            rfc3339(Some(at("2026-11-21T10:00:00.120Z"))),
            "2026-11-21T10:00:00.12Z"
        );
        assert_eq!(
            rfc3339(Some(at("2026-11-21T10:00:00.000000001Z"))),
            "2026-11-21T10:00:00.000000001Z"
        );
        assert_eq!(
            rfc3339_fixed(at("2026-11-21T10:00:00.5Z")),
            "2026-11-21T10:00:00.500000000Z"
        );
    }

    #[test]
    fn bounds_in_every_form() {
        let now = at("2026-11-21T12:00:00Z");
        for (text, expected) in [
            ("1700000000", "2023-11-14T22:13:20Z"),
            ("1700000000.5", "2023-11-14T22:13:20.5Z"),
            ("1700000000.000000001", "2023-11-14T22:13:20.000000001Z"),
            ("10m", "2026-11-21T11:50:00Z"),
            ("1h30m", "2026-11-21T10:30:00Z"),
            ("1.5h", "2026-11-21T10:30:00Z"),
            ("500ms", "2026-11-21T11:59:59.5Z"),
            ("-1h", "2026-11-21T13:00:00Z"),
            ("2026-11-20T01:02:03Z", "2026-11-20T01:02:03Z"),
            ("2026-11-20T01:02:03.5+02:00", "2026-11-19T23:02:03.5Z"),
            ("2026-11-20T01:02:03", "2026-11-20T01:02:03Z"),
            ("2026-11-20T01:02", "2026-11-20T01:02:00Z"),
            ("2026-11-20", "2026-11-20T00:00:00Z"),
        ] {
            assert_eq!(parse_bound(text, now).unwrap(), Some(at(expected)), "{text}");
        }
        assert_eq!(parse_bound("", now).unwrap(), None);
        assert_eq!(parse_bound("0", now).unwrap(), None);
        for bad in [
            "x",
            "10",
            "1h3",
            "h",
            "1.0000000001",
            "99999999999999999999",
            "-",
            "1700000000.x",
        ] {
            if bad == "10" {
                assert_eq!(parse_bound(bad, now).unwrap(), Some(at("1970-01-01T00:00:10Z")));
            } else {
                assert!(parse_bound(bad, now).is_err(), "{bad}");
            }
        }
    }

    #[test]
    fn durations_in_docker_s_words() {
        const DAY: i64 = 24 * 3600;
        for (seconds, expected) in [
            (0, "Less than a second"),
            (-5, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (5399, "About an hour"),
            (5400, "2 hours"),
            (47 * 3600, "47 hours"),
            (2 * DAY, "2 days"),
            (13 * DAY, "13 days"),
            (14 * DAY, "2 weeks"),
            (60 * DAY, "2 months"),
            (729 * DAY, "24 months"),
            (730 * DAY, "2 years"),
        ] {
            assert_eq!(human(SignedDuration::from_secs(seconds)), expected, "{seconds}");
        }
    }
}
