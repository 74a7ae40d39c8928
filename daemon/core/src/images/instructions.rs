//! `--change` of `docker commit` and `docker import`: Dockerfile instructions that change a configuration.
//!
//! Which ones are allowed, how words are split and expanded and how mistakes are named follows dockerd, whose classic
//! builder carries them out. The table of the tests was made by dockerd 26.

mod words;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::config::ContainerConfig;
use crate::container::check_signal;
use crate::error::{Error, Result};

use words::{Environment, pairs, split};

/// What runs commands that are given as text.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];
/// Largest range of ports one `EXPOSE` opens; there are no more ports than that.
const PORTS: u32 = 65536;

/// Applies instructions, one a line, in order.
///
/// # Errors
/// `InvalidParameter` in dockerd's words.
pub(crate) fn apply(config: &mut ContainerConfig, changes: &[String]) -> Result<()> {
    let mut state = State {
        config,
        command_set: false,
    };
    for line in logical_lines(changes) {
        let (name, rest) = match line.find(char::is_whitespace) {
            Some(at) => (&line[..at], line[at..].trim()),
            None => (line.as_str(), ""),
        };
        state.instruction(&name.to_ascii_uppercase(), rest)?;
    }
    Ok(())
}

/// Lines without comments and empty ones, those that end in a backslash joined with the next.
fn logical_lines(changes: &[String]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut open = String::new();
    for line in changes.iter().flat_map(|change| change.lines()) {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.trim_end().strip_suffix('\\') {
            Some(begun) => open.push_str(begun),
            None => lines.push(std::mem::take(&mut open) + line.trim_end()),
        }
    }
    if !open.is_empty() {
        lines.push(open);
    }
    lines
}

struct State<'c> {
    config: &'c mut ContainerConfig,
    /// `CMD` was among the instructions, so that `ENTRYPOINT` leaves it.
    command_set: bool,
}

impl State<'_> {
    fn instruction(&mut self, name: &str, rest: &str) -> Result<()> {
        match name {
            "CMD" => self.command(rest),
            "ENTRYPOINT" => self.entrypoint(rest),
            "ENV" => self.environment(rest)?,
            "EXPOSE" => self.expose(rest)?,
            "HEALTHCHECK" => self.healthcheck(rest)?,
            "LABEL" => self.label(rest)?,
            "ONBUILD" => self.on_build(rest)?,
            "STOPSIGNAL" => {
                let signal = self.one("STOPSIGNAL", rest)?;
                // Any number is taken, as dockerd takes it; a container with a nonsensical one says so when it is made.
                if signal.parse::<u32>().map_or(true, |number| number == 0) {
                    check_signal(&signal)?;
                }
                self.config.stop_signal = Some(signal);
            }
            "USER" => self.config.user = self.one("USER", rest)?,
            "VOLUME" => self.volumes(rest)?,
            "WORKDIR" => self.working_directory(rest)?,
            other => return Err(Error::invalid(format!("{other} is not a valid change command"))),
        }
        Ok(())
    }

    fn expanded(&self, word: &str) -> Result<String> {
        words::expand(word, &Environment::of(self.config.env.as_deref()))
    }

    /// The whole rest of the line.
    fn one(&self, name: &str, rest: &str) -> Result<String> {
        if rest.is_empty() {
            return Err(Error::invalid(format!("{name} requires exactly one argument")));
        }
        self.expanded(rest)
    }

    fn command(&mut self, rest: &str) {
        self.config.cmd = Some(self.program(rest));
        self.config.args_escaped = None;
        self.command_set = true;
    }

    fn entrypoint(&mut self, rest: &str) {
        let words = self.program(rest);
        self.config.entrypoint = (!words.is_empty()).then_some(words);
        if !self.command_set {
            self.config.cmd = None;
        }
    }

    /// A JSON list as it is, anything else for the shell.
    fn program(&self, rest: &str) -> Vec<String> {
        if let Some(list) = json_list(rest) {
            return list;
        }
        if rest.is_empty() {
            return Vec::new();
        }
        let shell = self.config.shell.clone().filter(|shell| !shell.is_empty());
        let mut words = shell.unwrap_or_else(|| SHELL.map(str::to_owned).to_vec());
        words.push(rest.to_owned());
        words
    }

    fn environment(&mut self, rest: &str) -> Result<()> {
        // All values see the environment as it was before the instruction.
        let set: Vec<(String, String)> = self.pairs("ENV", rest)?;
        let environment = self.config.env.get_or_insert_default();
        for (name, value) in set {
            let entry = format!("{name}={value}");
            let same = |known: &&mut String| known.split('=').next() == Some(name.as_str());
            match environment.iter_mut().find(same) {
                Some(known) => *known = entry,
                None => environment.push(entry),
            }
        }
        Ok(())
    }

    fn label(&mut self, rest: &str) -> Result<()> {
        let set = self.pairs("LABEL", rest)?;
        self.config.labels.get_or_insert_default().extend(set);
        Ok(())
    }

    fn pairs(&self, name: &str, rest: &str) -> Result<Vec<(String, String)>> {
        pairs(name, rest)?
            .into_iter()
            .map(|(key, value)| Ok((self.expanded(&key)?, self.expanded(&value)?)))
            .collect()
    }

    fn expose(&mut self, rest: &str) -> Result<()> {
        if rest.is_empty() {
            return Err(Error::invalid("EXPOSE requires at least one argument"));
        }
        for word in split(rest) {
            for specification in self.expanded(&word)?.split_whitespace() {
                let ports = ports(specification)?;
                let exposed = self.config.exposed_ports.get_or_insert_default();
                exposed.extend(ports.into_iter().map(|port| (port, json!({}))));
            }
        }
        Ok(())
    }

    fn volumes(&mut self, rest: &str) -> Result<()> {
        if rest.is_empty() {
            return Err(Error::invalid("VOLUME requires at least one argument"));
        }
        let words = json_list(rest).unwrap_or_else(|| split(rest));
        let volumes: BTreeMap<String, Value> = words
            .iter()
            .map(|word| {
                let path = self.expanded(word)?.trim().to_owned();
                if path.is_empty() {
                    return Err(Error::invalid("VOLUME specified can not be an empty string"));
                }
                Ok((path, json!({})))
            })
            .collect::<Result<_>>()?;
        self.config.volumes.get_or_insert_default().extend(volumes);
        Ok(())
    }

    fn working_directory(&mut self, rest: &str) -> Result<()> {
        let path = self.one("WORKDIR", rest)?;
        let base = if path.starts_with('/') {
            ""
        } else {
            self.config.working_dir.as_str()
        };
        self.config.working_dir = cleaned(&format!("/{base}/{path}"));
        Ok(())
    }

    fn on_build(&mut self, rest: &str) -> Result<()> {
        let trigger = rest
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .to_ascii_uppercase();
        match trigger.as_str() {
            "" => return Err(Error::invalid("ONBUILD requires at least one argument")),
            "ONBUILD" => {
                return Err(Error::invalid(
                    "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed",
                ));
            }
            "MAINTAINER" | "FROM" => {
                return Err(Error::invalid(format!(
                    "{trigger} isn't allowed as an ONBUILD trigger"
                )));
            }
            _ => {}
        }
        self.config.on_build.get_or_insert_default().push(rest.to_owned());
        Ok(())
    }

    fn healthcheck(&mut self, rest: &str) -> Result<()> {
        let mut check = serde_json::Map::new();
        let mut rest = rest;
        while let Some(flag) = rest.strip_prefix("--") {
            let end = flag.find(char::is_whitespace).unwrap_or(flag.len());
            let (name, value) = flag[..end].split_once('=').unwrap_or((&flag[..end], ""));
            healthcheck_flag(&mut check, name, value)?;
            rest = flag[end..].trim_start();
        }
        let (kind, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let test = match kind.to_ascii_uppercase().as_str() {
            "" => return Err(Error::invalid("HEALTHCHECK requires at least one argument")),
            "NONE" if command.trim().is_empty() => vec!["NONE".to_owned()],
            "NONE" => return Err(Error::invalid("HEALTHCHECK NONE takes no arguments")),
            "CMD" => {
                let command = command.trim();
                match json_list(command) {
                    Some(list) if !list.is_empty() => [vec!["CMD".to_owned()], list].concat(),
                    None if !command.is_empty() => vec!["CMD-SHELL".to_owned(), command.to_owned()],
                    _ => return Err(Error::invalid("Missing command after HEALTHCHECK CMD")),
                }
            }
            other => {
                let text = format!("Unknown type {other:?} in HEALTHCHECK (try CMD)");
                return Err(Error::invalid(text));
            }
        };
        check.insert("Test".to_owned(), json!(test));
        self.config.healthcheck = Some(Value::Object(check));
        Ok(())
    }
}

fn healthcheck_flag(check: &mut serde_json::Map<String, Value>, name: &str, value: &str) -> Result<()> {
    let field = match name {
        "interval" => "Interval",
        "timeout" => "Timeout",
        "start-period" => "StartPeriod",
        "start-interval" => "StartInterval",
        "retries" => {
            let number: i64 = value.parse().map_err(|_| {
                Error::invalid(format!("strconv.ParseInt: parsing {value:?}: invalid syntax"))
            })?;
            if number < 0 {
                return Err(Error::invalid(format!("--retries cannot be negative ({number})")));
            }
            check.insert("Retries".to_owned(), json!(number));
            return Ok(());
        }
        other => return Err(Error::invalid(format!("unknown flag: {other}"))),
    };
    let duration = super::list::go_duration(value)
        .ok_or_else(|| Error::invalid(format!("time: invalid duration {value:?}")))?;
    let nanoseconds = i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
    if nanoseconds != 0 && nanoseconds < 1_000_000 {
        return Err(Error::invalid(format!(
            "Interval {name:?} cannot be less than 1ms"
        )));
    }
    check.insert(field.to_owned(), json!(nanoseconds));
    Ok(())
}

/// `["a", "b"]`; anything else is no list.
fn json_list(text: &str) -> Option<Vec<String>> {
    text.starts_with('[')
        .then(|| serde_json::from_str(text).ok())
        .flatten()
}

/// `80`, `80/udp`, `100-102`, `8080:80`: the container's ports with their protocol.
fn ports(text: &str) -> Result<Vec<String>> {
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(Error::invalid(format!("Invalid proto: {protocol}")));
    }
    let container = range.rsplit(':').next().unwrap_or_default();
    let invalid = || Error::invalid(format!("Invalid containerPort: {container}"));
    if container.is_empty() {
        return Err(Error::invalid(format!("No port specified: {text}<empty>")));
    }
    let (first, last) = container.split_once('-').unwrap_or((container, container));
    let number = |text: &str| text.parse::<u16>().map_err(|_| invalid());
    let (first, last) = (number(first)?, number(last)?);
    if last < first || u32::from(last - first) > PORTS {
        return Err(invalid());
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

/// A path without `.`, `..` and double slashes.
fn cleaned(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(changes: &[&str]) -> Result<Value> {
        let mut config = ContainerConfig {
            env: Some(vec!["PATH=/usr/bin:/bin".to_owned()]),
            cmd: Some(vec!["x".to_owned()]),
            ..ContainerConfig::default()
        };
        let changes: Vec<String> = changes.iter().map(|&c| c.to_owned()).collect();
        apply(&mut config, &changes)?;
        Ok(serde_json::to_value(config).unwrap())
    }

    /// What dockerd 26.1.5 makes of them.
    #[test]
    fn each_instruction_does_what_it_does_in_dockerd() {
        for (change, field, expected) in [
            (
                r#"ENV a=b c="d e" f=g\ h"#,
                "Env",
                json!(["PATH=/usr/bin:/bin", "a=b", "c=d e", "f=g h"]),
            ),
            ("ENV a b c  d", "Env", json!(["PATH=/usr/bin:/bin", "a=b c  d"])),
            (
                "ENV PATH=$PATH:/x Y=${FOO:-def}",
                "Env",
                json!(["PATH=/usr/bin:/bin:/x", "Y=def"]),
            ),
            (
                "EXPOSE 80 90/udp 100-102",
                "ExposedPorts",
                json!({"80/tcp": {}, "90/udp": {}, "100/tcp": {}, "101/tcp": {}, "102/tcp": {}}),
            ),
            ("EXPOSE 1:2", "ExposedPorts", json!({"2/tcp": {}})),
            (r#"LABEL a=b "c d"=e"#, "Labels", json!({"a": "b", "c d": "e"})),
            ("ONBUILD RUN x y", "OnBuild", json!(["RUN x y"])),
            ("USER a b", "User", json!("a b")),
            ("USER a:b", "User", json!("a:b")),
            ("VOLUME /a /b", "Volumes", json!({"/a": {}, "/b": {}})),
            (r#"VOLUME ["/c d"]"#, "Volumes", json!({"/c d": {}})),
            ("WORKDIR rel", "WorkingDir", json!("/rel")),
            ("WORKDIR /a b", "WorkingDir", json!("/a b")),
            ("STOPSIGNAL SIGINT", "StopSignal", json!("SIGINT")),
            ("STOPSIGNAL 9", "StopSignal", json!("9")),
            ("HEALTHCHECK NONE", "Healthcheck", json!({"Test": ["NONE"]})),
            (
                "HEALTHCHECK --interval=5s --retries=3 CMD curl x",
                "Healthcheck",
                json!({"Test": ["CMD-SHELL", "curl x"], "Interval": 5_000_000_000_u64, "Retries": 3}),
            ),
            (
                r#"HEALTHCHECK CMD ["a","b"]"#,
                "Healthcheck",
                json!({"Test": ["CMD", "a", "b"]}),
            ),
            ("CMD echo hi", "Cmd", json!(["/bin/sh", "-c", "echo hi"])),
            (r#"CMD ["a"#, "Cmd", json!(["/bin/sh", "-c", r#"["a"#])),
            ("cmd x", "Cmd", json!(["/bin/sh", "-c", "x"])),
            (r#"ENTRYPOINT ["a"]"#, "Entrypoint", json!(["a"])),
            (r#"ENTRYPOINT ["a"]"#, "Cmd", Value::Null),
            (
                "ENTRYPOINT echo x",
                "Entrypoint",
                json!(["/bin/sh", "-c", "echo x"]),
            ),
            ("ENTRYPOINT []", "Entrypoint", Value::Null),
        ] {
            assert_eq!(changed(&[change]).unwrap()[field], expected, "{change}");
        }
    }

    #[test]
    fn mistakes_are_named_as_dockerd_names_them() {
        for (change, expected) in [
            ("RUN x", "RUN is not a valid change command"),
            ("foo x", "FOO is not a valid change command"),
            ("ENV", "ENV requires at least one argument"),
            ("ENV a", "ENV must have two arguments"),
            (
                "ENV a=b c",
                "Syntax error - can't find = in \"c\". Must be of the form: name=value",
            ),
            ("LABEL", "LABEL requires at least one argument"),
            ("LABEL a", "LABEL must have two arguments"),
            ("EXPOSE", "EXPOSE requires at least one argument"),
            ("EXPOSE 80/foo", "Invalid proto: foo"),
            ("EXPOSE abc", "Invalid containerPort: abc"),
            ("EXPOSE 70000", "Invalid containerPort: 70000"),
            ("STOPSIGNAL foo", "invalid signal: foo"),
            ("STOPSIGNAL", "STOPSIGNAL requires exactly one argument"),
            ("WORKDIR", "WORKDIR requires exactly one argument"),
            ("USER", "USER requires exactly one argument"),
            ("VOLUME", "VOLUME requires at least one argument"),
            ("ONBUILD", "ONBUILD requires at least one argument"),
            (
                "ONBUILD ONBUILD RUN",
                "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed",
            ),
            ("ONBUILD from x", "FROM isn't allowed as an ONBUILD trigger"),
            ("HEALTHCHECK", "HEALTHCHECK requires at least one argument"),
            ("HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD"),
            ("HEALTHCHECK --foo=1 CMD x", "unknown flag: foo"),
            ("HEALTHCHECK --interval=x CMD y", "time: invalid duration \"x\""),
            (
                "HEALTHCHECK --retries=-1 CMD y",
                "--retries cannot be negative (-1)",
            ),
        ] {
            let error = changed(&[change]).unwrap_err();
            assert_eq!(error.to_string(), expected, "{change}");
            assert_eq!(error.kind(), crate::ErrorKind::InvalidParameter);
        }
    }

    #[test]
    fn instructions_follow_each_other() {
        let config = changed(&[
            "CMD [\"c\"]",
            "ENTRYPOINT [\"e\"]",
            "WORKDIR /a",
            "WORKDIR ../b/./c",
        ])
        .unwrap();
        assert_eq!(config["Cmd"], json!(["c"]), "a command that was set stays");
        assert_eq!(config["WorkingDir"], "/b/c");
        let config = changed(&["# comment\n\nENV A=1 \\\n  B=2\nENV A=$B"]).unwrap();
        assert_eq!(config["Env"], json!(["PATH=/usr/bin:/bin", "A=2", "B=2"]));
    }
}
