//! `daemon.json`: read, every key known, no key also a flag.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Map, Value};

use super::ConfigError;
use super::keys::{self, Verdict};
use super::settings::Settings;

/// What the file says.
#[derive(Debug, Default)]
pub(super) struct FileSettings {
    /// Supported options.
    pub(super) settings: Settings,
    /// Options without effect that ask for something.
    pub(super) warnings: Vec<String>,
}

/// Reads the file. `flags` are the options given on the command line, by their name in the file, with the value as
/// dockerd would print it. A missing file is an error only when it was asked for.
///
/// # Errors
/// With the file's name in front: unreadable, not JSON, unknown key, wrong type, conflict with a flag, refused option.
pub(super) fn read(
    path: &Path,
    explicit: bool,
    flags: &BTreeMap<&'static str, String>,
) -> Result<FileSettings, ConfigError> {
    let wrap = |text: String| {
        ConfigError::new(format!(
            "unable to configure the Docker daemon with file {}: {text}",
            path.display()
        ))
    };
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !explicit => {
            return Ok(FileSettings::default());
        }
        Err(error) => return Err(wrap(error.to_string())),
    };
    parse(&text, flags).map_err(wrap)
}

fn parse(text: &str, flags: &BTreeMap<&'static str, String>) -> Result<FileSettings, String> {
    let text = text.trim_start_matches('\u{feff}');
    if text.trim().is_empty() {
        return Ok(FileSettings::default());
    }
    let document: Map<String, Value> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    check_names(&document)?;
    check_conflicts(&document, flags)?;

    let mut result = FileSettings::default();
    let mut supported = Map::new();
    for (name, value) in document {
        // All names are known by now.
        let Some(key) = keys::by_file_name(&name) else {
            continue;
        };
        match key.class.judge(&value) {
            Verdict::Use => {
                supported.insert(name, value);
            }
            Verdict::Ignore => {}
            Verdict::Warn(reason) => {
                result
                    .warnings
                    .push(format!("\"{name}\" in daemon.json has no effect: {reason}"));
            }
            Verdict::Refuse(reason) => return Err(format!("\"{name}\": {reason}")),
        }
    }
    result.settings = typed(supported)?;
    Ok(result)
}

fn check_names(document: &Map<String, Value>) -> Result<(), String> {
    let unknown: Vec<&str> = document
        .keys()
        .map(String::as_str)
        .filter(|name| keys::by_file_name(name).is_none())
        .collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let mut text = format!(
        "the following directives don't match any configuration option: {}",
        unknown.join(", ")
    );
    for name in unknown {
        if let Some(meant) = keys::suggestion(name) {
            text.push_str(&format!("\n  did you mean \"{meant}\" instead of \"{name}\"?"));
        }
    }
    Err(text)
}

/// dockerd refuses an option that is given twice, even with the same value. Runtimes are the exception: both count.
fn check_conflicts(
    document: &Map<String, Value>,
    flags: &BTreeMap<&'static str, String>,
) -> Result<(), String> {
    let conflicts: Vec<String> = flags
        .iter()
        .filter(|(name, _)| **name != "runtimes")
        .filter_map(|(name, from_flag)| {
            let from_file = go_format(document.get(*name)?);
            Some(format!(
                "{name}: (from flag: {from_flag}, from file: {from_file})"
            ))
        })
        .collect();
    if conflicts.is_empty() {
        return Ok(());
    }
    Err(format!(
        "the following directives are specified both as a flag and in the configuration file: {}",
        conflicts.join(", ")
    ))
}

/// Converts, naming the key that has the wrong type.
fn typed(document: Map<String, Value>) -> Result<Settings, String> {
    for (name, value) in &document {
        let alone = Map::from_iter([(name.clone(), value.clone())]);
        if let Err(error) = serde_json::from_value::<Settings>(Value::Object(alone)) {
            return Err(format!("\"{name}\": {error}"));
        }
    }
    serde_json::from_value(Value::Object(document)).map_err(|error| error.to_string())
}

/// A value as Go's `%v` prints it.
fn go_format(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(go_format).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let mut entries: Vec<_> = map
                .iter()
                .map(|(name, value)| format!("{name}:{}", go_format(value)))
                .collect();
            entries.sort_unstable();
            format!("map[{}]", entries.join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(list: &[(&'static str, &str)]) -> BTreeMap<&'static str, String> {
        list.iter()
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect()
    }

    #[test]
    fn accepted_files() {
        for (text, warnings) in [
            ("", 0),
            (" \n", 0),
            ("{}", 0),
            ("\u{feff}{\"debug\": true}", 0),
            (
                r#"{"exec-opts":["native.cgroupdriver=cgroupfs"],"cgroup-parent":"/actions_job"}"#,
                2,
            ),
            (
                r#"{"iptables": false, "dns": [], "userns-remap": "", "tls": false}"#,
                0,
            ),
            (
                r#"{"hosts":["unix:///x"],"labels":["a=b"],"mtu":1400,"runtimes":{"crun":{"path":"crun"}}}"#,
                0,
            ),
        ] {
            let result = parse(text, &BTreeMap::new()).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(result.warnings.len(), warnings, "{text}: {:?}", result.warnings);
        }
    }

    #[test]
    fn refused_files() {
        for (text, given, expected) in [
            (
                r#"{"debug": true}"#,
                flags(&[("debug", "true")]),
                "the following directives are specified both as a flag and in the configuration file: debug: (from flag: true, from file: true)",
            ),
            (
                r#"{"hosts": ["tcp://a", "fd://"], "debug": false, "mtu": 1500}"#,
                flags(&[("hosts", "[unix:///x]"), ("mtu", "9000")]),
                "the following directives are specified both as a flag and in the configuration file: hosts: (from flag: [unix:///x], from file: [tcp://a fd://]), mtu: (from flag: 9000, from file: 1500)",
            ),
            (
                r#"{"xyzzy": 1}"#,
                flags(&[]),
                "the following directives don't match any configuration option: xyzzy",
            ),
            (
                r#"{"storage-drivr": "vfs"}"#,
                flags(&[]),
                "the following directives don't match any configuration option: storage-drivr\n  did you mean \"storage-driver\" instead of \"storage-drivr\"?",
            ),
            (
                r#"{"debug": "yes"}"#,
                flags(&[]),
                "\"debug\": invalid type: string \"yes\", expected a boolean",
            ),
            (
                r#"{"icc": false}"#,
                flags(&[]),
                "\"icc\": not supported by this version, and ignoring it would give containers more than you asked for",
            ),
            (
                r#"{"userns-remap": "default"}"#,
                flags(&[]),
                "\"userns-remap\": not supported by this version",
            ),
        ] {
            assert_eq!(parse(text, &given).unwrap_err(), expected, "{text}");
        }
        assert!(parse("[]", &BTreeMap::new()).is_err());
        assert!(parse("{", &BTreeMap::new()).is_err());
    }

    #[test]
    fn runtimes_may_be_in_both_places() {
        let both = flags(&[("runtimes", "[runc=runc]")]);
        assert!(parse(r#"{"runtimes":{"crun":{"path":"crun"}}}"#, &both).is_ok());
    }

    #[test]
    fn a_missing_file_is_an_error_only_when_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.json");
        assert!(read(&path, false, &BTreeMap::new()).is_ok());
        let error = read(&path, true, &BTreeMap::new()).unwrap_err().to_string();
        assert!(error.starts_with(&format!(
            "unable to configure the Docker daemon with file {}: ",
            path.display()
        )));
    }
}
