//! Shell patterns as Go's `path.Match` understands them, for the `reference` filter: `*` and `?` do not match `/`.

/// Whether `text` as a whole matches; `None` when the pattern is malformed (an open `[`, a lone `\` at the end).
pub(super) fn matches(pattern: &str, text: &str) -> Option<bool> {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    check(&pattern)?;
    Some(matches_from(&pattern, &text))
}

/// Iterative with one point to return to, so that no pattern takes exponential time.
fn matches_from(pattern: &[char], text: &[char]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where the last `*` stood and how much text it has been given so far.
    let mut star: Option<(usize, usize)> = None;
    loop {
        if pattern.get(p) == Some(&'*') {
            star = Some((p + 1, t));
            p += 1;
            continue;
        }
        if p == pattern.len() && t == text.len() {
            return true;
        }
        match one(&pattern[p..], text.get(t).copied()) {
            Some(width) => {
                p += width;
                t += 1;
            }
            None => match star {
                Some((after, eaten)) if eaten < text.len() && text[eaten] != '/' => {
                    star = Some((after, eaten + 1));
                    p = after;
                    t = eaten + 1;
                }
                _ => return false,
            },
        }
    }
}

/// Matches one character against the beginning of `pattern`; the pattern's width when it does.
fn one(pattern: &[char], character: Option<char>) -> Option<usize> {
    let character = character?;
    match pattern {
        ['?', ..] => (character != '/').then_some(1),
        ['\\', literal, ..] => (*literal == character).then_some(2),
        ['[', rest @ ..] => class(rest, character).and_then(|(hit, width)| hit.then_some(width + 1)),
        [literal, ..] => (*literal == character).then_some(1),
        [] => None,
    }
}

/// A class after its `[`: whether it contains the character, and its width with the `]`; `None` when malformed.
fn class(rest: &[char], character: char) -> Option<(bool, usize)> {
    let negated = rest.first() == Some(&'^');
    let mut at = usize::from(negated);
    let mut hit = false;
    let mut first = true;
    loop {
        if rest.get(at) == Some(&']') && !first {
            return Some((hit != negated, at + 1));
        }
        first = false;
        let low = class_member(rest, &mut at)?;
        let high = if rest.get(at) == Some(&'-') {
            at += 1;
            class_member(rest, &mut at)?
        } else {
            low
        };
        hit |= (low..=high).contains(&character);
    }
}

fn class_member(rest: &[char], at: &mut usize) -> Option<char> {
    let mut member = *rest.get(*at)?;
    if member == '-' || member == ']' {
        return None;
    }
    if member == '\\' {
        *at += 1;
        member = *rest.get(*at)?;
    }
    *at += 1;
    Some(member)
}

/// Whether the pattern is well formed.
fn check(mut pattern: &[char]) -> Option<()> {
    loop {
        pattern = match pattern {
            [] => return Some(()),
            ['\\', rest @ ..] => rest.get(1..)?,
            ['[', rest @ ..] => &rest[class(rest, '\0')?.1..],
            [_, rest @ ..] => rest,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_path_match() {
        let cases: [(&str, &str, Option<bool>); 20] = [
            ("abc", "abc", Some(true)),
            ("*", "abc", Some(true)),
            ("*c", "abc", Some(true)),
            ("a*", "a", Some(true)),
            ("a*", "ab/c", Some(false)),
            ("a*/b", "abc/b", Some(true)),
            ("a*/b", "a/c/b", Some(false)),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", Some(true)),
            ("a*b?c*x", "abxbbxdbxebxczzx", Some(true)),
            ("a*b?c*x", "abxbbxdbxebxczzy", Some(false)),
            ("ab[c]", "abc", Some(true)),
            ("ab[b-d]", "abc", Some(true)),
            ("ab[^c]", "abc", Some(false)),
            ("a\\*b", "a*b", Some(true)),
            ("a?b", "a/b", Some(false)),
            ("busy*:lat*", "busybox:latest", Some(true)),
            ("[", "a", None),
            ("a[", "ab", None),
            ("a\\", "a", None),
            ("[]a]", "]", None),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
