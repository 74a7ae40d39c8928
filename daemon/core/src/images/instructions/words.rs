//! Words of a Dockerfile instruction: splitting, quotes, variables.

use std::collections::HashMap;

use crate::error::{Error, Result};

/// Deepest nesting of `${a:-${b:-…}}`.
const NESTING: usize = 32;

/// Variables by name.
pub(super) struct Environment<'e>(HashMap<&'e str, &'e str>);

impl<'e> Environment<'e> {
    /// Of a configuration's `NAME=value` list.
    pub(super) fn of(entries: Option<&'e [String]>) -> Self {
        let pair = |entry: &'e String| entry.split_once('=').unwrap_or((entry, ""));
        Self(entries.unwrap_or_default().iter().map(pair).collect())
    }
}

/// Splits at blanks that are neither quoted nor escaped; quotes and escapes stay.
pub(super) fn split(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            ('\\', None | Some('"')) => {
                word.push(letter);
                word.extend(letters.next());
                continue;
            }
            ('\'' | '"', None) => quote = Some(letter),
            (letter, Some(open)) if letter == open => quote = None,
            (letter, None) if letter.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            _ => {}
        }
        word.push(letter);
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// `a=b c=d`, or the old form `a b c d`, which is one pair.
///
/// # Errors
/// `InvalidParameter`.
pub(super) fn pairs(instruction: &str, rest: &str) -> Result<Vec<(String, String)>> {
    let words = split(rest);
    let Some(first) = words.first() else {
        return Err(Error::invalid(format!(
            "{instruction} requires at least one argument"
        )));
    };
    if !first.contains('=') {
        return match rest.split_once(char::is_whitespace) {
            Some((name, value)) => Ok(vec![(name.to_owned(), value.trim_start().to_owned())]),
            None => Err(Error::invalid(format!("{instruction} must have two arguments"))),
        };
    }
    words
        .iter()
        .map(|word| match word.split_once('=') {
            Some(("", _)) => Err(Error::invalid(format!("{instruction} names can not be blank"))),
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => Err(Error::invalid(format!(
                "Syntax error - can't find = in {word:?}. Must be of the form: name=value"
            ))),
        })
        .collect()
}

/// Takes quotes and escapes away and puts variables in.
///
/// # Errors
/// `InvalidParameter` for a quote that does not end or a variable with a modifier nobody knows.
pub(super) fn expand(word: &str, environment: &Environment<'_>) -> Result<String> {
    let mut expansion = Expansion {
        letters: word.chars().collect(),
        at: 0,
        environment,
    };
    expansion.until(None, 0)
}

struct Expansion<'e> {
    letters: Vec<char>,
    at: usize,
    environment: &'e Environment<'e>,
}

impl Expansion<'_> {
    fn next(&mut self) -> Option<char> {
        let letter = self.letters.get(self.at).copied();
        self.at += usize::from(letter.is_some());
        letter
    }

    fn peek(&self) -> Option<char> {
        self.letters.get(self.at).copied()
    }

    /// Up to `stop` (which is consumed) or the end.
    fn until(&mut self, stop: Option<char>, depth: usize) -> Result<String> {
        let mut out = String::new();
        loop {
            match self.next() {
                None if stop.is_none() => return Ok(out),
                None => return Err(Error::invalid("syntax error: missing '}'")),
                letter if letter == stop => return Ok(out),
                Some('\'') => self.single_quoted(&mut out)?,
                Some('"') => self.double_quoted(&mut out, depth)?,
                Some('$') => self.variable(&mut out, depth)?,
                // A backslash at the very end stands for nothing.
                Some('\\') => out.extend(self.next()),
                Some(letter) => out.push(letter),
            }
        }
    }

    fn single_quoted(&mut self, out: &mut String) -> Result<()> {
        loop {
            match self.next() {
                None => {
                    return Err(Error::invalid(
                        "unexpected end of statement while looking for matching single-quote",
                    ));
                }
                Some('\'') => return Ok(()),
                Some(letter) => out.push(letter),
            }
        }
    }

    fn double_quoted(&mut self, out: &mut String, depth: usize) -> Result<()> {
        loop {
            match self.next() {
                None => {
                    return Err(Error::invalid(
                        "unexpected end of statement while looking for matching double-quote",
                    ));
                }
                Some('"') => return Ok(()),
                Some('$') => self.variable(out, depth)?,
                Some('\\') => match self.next() {
                    // Only these three lose their backslash.
                    Some(letter @ ('"' | '$' | '\\')) => out.push(letter),
                    Some(letter) => out.extend(['\\', letter]),
                    None => out.push('\\'),
                },
                Some(letter) => out.push(letter),
            }
        }
    }

    /// What follows a dollar sign.
    fn variable(&mut self, out: &mut String, depth: usize) -> Result<()> {
        if depth >= NESTING {
            return Err(Error::invalid("syntax error: variables are nested too deeply"));
        }
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                out.push('$');
            }
            out.push_str(self.value(&name).unwrap_or_default());
            return Ok(());
        }
        self.next();
        let name = self.name();
        if name.is_empty() {
            return Err(Error::invalid("syntax error: bad substitution"));
        }
        let unset = self.value(&name).is_none();
        let empty = self.value(&name).is_none_or(str::is_empty);
        let (strict, operator) = match self.next() {
            Some('}') => {
                out.push_str(self.value(&name).unwrap_or_default());
                return Ok(());
            }
            Some(':') => (true, self.next()),
            operator => (false, operator),
        };
        let missing = if strict { empty } else { unset };
        let operator = operator.ok_or_else(|| Error::invalid("syntax error: missing '}'"))?;
        let word = self.until(Some('}'), depth + 1)?;
        match operator {
            '-' if missing => out.push_str(&word),
            '-' => out.push_str(self.value(&name).unwrap_or_default()),
            '+' if !missing => out.push_str(&word),
            '+' => {}
            '?' if missing => {
                let why = if word.is_empty() {
                    "is not allowed to be unset"
                } else {
                    &word
                };
                return Err(Error::invalid(format!("{name}: {why}")));
            }
            '?' => out.push_str(self.value(&name).unwrap_or_default()),
            other => {
                return Err(Error::invalid(format!(
                    "unsupported modifier ({other}) in substitution"
                )));
            }
        }
        Ok(())
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(letter) = self.peek() {
            let first = name.is_empty();
            if !(letter == '_' || letter.is_ascii_alphabetic() || (!first && letter.is_ascii_digit())) {
                break;
            }
            name.push(letter);
            self.at += 1;
        }
        name
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.environment.0.get(name).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(word: &str) -> Result<String> {
        let entries = ["A=1".to_owned(), "E=".to_owned(), "B_2=two".to_owned()];
        expand(word, &Environment::of(Some(&entries)))
    }

    #[test]
    fn words_end_at_blanks_outside_of_quotes() {
        assert_eq!(
            split(r#"a "b c" 'd "e' f\ g  h"#),
            ["a", "\"b c\"", "'d \"e'", "f\\ g", "h"]
        );
        assert_eq!(split("  "), Vec::<String>::new());
    }

    #[test]
    fn variables_and_quotes() {
        for (word, expected) in [
            ("$A", "1"),
            ("${A}x$B_2", "1xtwo"),
            ("$", "$"),
            ("$1", "$1"),
            ("\\$A", "$A"),
            ("'$A'", "$A"),
            ("\"$A \\\" \\n\"", "1 \" \\n"),
            ("${X:-d}${E:-d}${E-d}${X-d}", "ddd"),
            ("${A:+y}${E:+y}${E+y}${X+y}", "yy"),
            ("${X:-${A}${Y:-z}}", "1z"),
            ("${A:?no}", "1"),
            ("a\\", "a"),
        ] {
            assert_eq!(expanded(word).unwrap(), expected, "{word}");
        }
        for word in ["'a", "\"a", "${A", "${}", "${X:?gone}", "${A%x}", "${X:-"] {
            assert!(expanded(word).is_err(), "{word}");
        }
        let nested = "${X:-".repeat(100_000) + &"}".repeat(100_000);
        assert!(expanded(&nested).is_err());
    }
}
