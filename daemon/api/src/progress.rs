//! Progress of a pull or load in the JSON stream that the docker CLI draws its bars from.

use bytes::Bytes;
use serde::Serialize;
use skiff_core::images::Progress;

use crate::answer;

/// Width of the bar in the ready-made text.
const BAR: u64 = 50;

#[derive(Serialize)]
struct Message<'a> {
    status: &'a str,
    #[serde(rename = "progressDetail", skip_serializing_if = "Option::is_none")]
    detail: Option<Detail>,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
}

#[derive(Serialize)]
struct Detail {
    #[serde(skip_serializing_if = "is_zero")]
    current: u64,
    #[serde(skip_serializing_if = "is_zero")]
    total: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[derive(Serialize)]
struct Failure<'a> {
    #[serde(rename = "errorDetail")]
    detail: FailureDetail<'a>,
    error: &'a str,
}

#[derive(Serialize)]
struct FailureDetail<'a> {
    message: &'a str,
}

#[derive(Serialize)]
struct Text<'a> {
    stream: &'a str,
}

/// One line of the stream.
pub(crate) fn line(progress: &Progress) -> Bytes {
    let message = match progress {
        Progress::Text(stream) => return answer::json_line_ending_in(&Text { stream }, b"\r\n"),
        Progress::Status { status, id } => Message {
            status,
            detail: None,
            progress: None,
            id: id.as_deref(),
        },
        Progress::Layer {
            id,
            status,
            current,
            total,
        } => Message {
            status,
            detail: Some(Detail {
                current: *current,
                total: *total,
            }),
            progress: (*current > 0).then(|| bar(*current, *total)),
            id: Some(id),
        },
    };
    answer::json_line_ending_in(&message, b"\r\n")
}

/// The line that says what went wrong after the stream had begun.
pub(crate) fn error_line(error: &skiff_core::Error) -> Bytes {
    let message = error.to_string();
    let failure = Failure {
        detail: FailureDetail { message: &message },
        error: &message,
    };
    answer::json_line_ending_in(&failure, b"\r\n")
}

/// `[====>      ]  1.5MB/3MB`, for clients that do not draw themselves.
fn bar(current: u64, total: u64) -> String {
    if total == 0 {
        return format!("{:>8}", human_size(current));
    }
    let done = current
        .saturating_mul(BAR)
        .checked_div(total)
        .unwrap_or(0)
        .min(BAR);
    let repeat = |piece: &str, count: u64| piece.repeat(usize::try_from(count).unwrap_or(0));
    let bar = format!("[{}>{}]", repeat("=", done), repeat(" ", BAR - done));
    if current > total {
        format!("{bar} {:>8}", human_size(current))
    } else {
        format!("{bar} {:>8}/{}", human_size(current), human_size(total))
    }
}

/// A size in decimal units with four significant digits (`1.441MB`).
fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    #[expect(clippy::cast_precision_loss, reason = "four digits are shown")]
    let mut size = bytes as f64;
    let mut unit = 0;
    while size >= 1000.0 && unit + 1 < UNITS.len() {
        size /= 1000.0;
        unit += 1;
    }
    let decimals = match size {
        ..10.0 => 3,
        10.0..100.0 => 2,
        100.0..1000.0 => 1,
        _ => 0,
    };
    let text = format!("{size:.decimals$}");
    let text = if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        &text
    };
    format!("{text}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(progress: &Progress) -> String {
        String::from_utf8(line(progress).to_vec()).unwrap()
    }

    #[test]
    fn lines_of_a_pull() {
        let status = |status: &str, id: Option<&str>| Progress::Status {
            status: status.into(),
            id: id.map(Into::into),
        };
        let layer = |status, current, total| Progress::Layer {
            id: "0123456789ab".into(),
            status,
            current,
            total,
        };
        assert_eq!(
            text(&status("Pulling from library/busybox", Some("latest"))),
            "{\"status\":\"Pulling from library/busybox\",\"id\":\"latest\"}\r\n"
        );
        assert_eq!(
            text(&status("Digest: sha256:1", None)),
            "{\"status\":\"Digest: sha256:1\"}\r\n"
        );
        assert_eq!(
            text(&layer("Pulling fs layer", 0, 0)),
            "{\"status\":\"Pulling fs layer\",\"progressDetail\":{},\"id\":\"0123456789ab\"}\r\n"
        );
        assert_eq!(
            text(&layer("Downloading", 1_500_000, 3_000_000)),
            format!(
                "{{\"status\":\"Downloading\",\"progressDetail\":{{\"current\":1500000,\"total\":3000000}},\
                 \"progress\":\"[{}>{}]    1.5MB/3MB\",\"id\":\"0123456789ab\"}}\r\n",
                "=".repeat(25),
                " ".repeat(25)
            )
        );
        assert!(text(&layer("Downloading", 5, 0)).contains("\"progress\":\"      5B\""));
        assert!(text(&layer("Downloading", 9, 3)).contains(&format!("[{}>]       9B\"", "=".repeat(50))));
    }

    #[test]
    fn texts_are_for_the_user_as_they_are() {
        assert_eq!(
            text(&Progress::Text("Loaded image: a:1\n".into())),
            "{\"stream\":\"Loaded image: a:1\\n\"}\r\n"
        );
    }

    #[test]
    fn errors_come_in_both_forms() {
        let line = error_line(&skiff_core::Error::system("unexpected EOF"));
        assert_eq!(
            &line[..],
            b"{\"errorDetail\":{\"message\":\"unexpected EOF\"},\"error\":\"unexpected EOF\"}\r\n"
        );
    }

    #[test]
    fn sizes_have_four_digits() {
        for (bytes, expected) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (1_441_234, "1.441MB"),
            (12_345_678, "12.35MB"),
            (123_456_789, "123.5MB"),
            (u64::MAX, "18.45EB"),
        ] {
            assert_eq!(human_size(bytes), expected);
        }
    }
}
