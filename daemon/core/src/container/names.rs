//! Container names and ids: generation and validation.

use ring::rand::{SecureRandom as _, SystemRandom};

use crate::error::{Error, Result};

const ADJECTIVES: &[&str] = &[
    "able", "agile", "amber", "bold", "brave", "breezy", "bright", "brisk", "calm", "candid", "clever",
    "coastal", "cosy", "daring", "deep", "eager", "early", "easy", "fair", "fleet", "fond", "frank", "free",
    "fresh", "gentle", "glad", "golden", "grand", "handy", "happy", "hardy", "keen", "kind", "lively",
    "lucid", "lucky", "mellow", "merry", "mild", "misty", "modest", "nimble", "noble", "northern", "patient",
    "placid", "plucky", "proud", "quick", "quiet", "ready", "rustic", "salty", "sharp", "silent", "silver",
    "sleek", "smooth", "snug", "sober", "solid", "southern", "spry", "stable", "steady", "stout", "sunny",
    "swift", "tidal", "tidy", "trim", "trusty", "vivid", "warm", "western", "wise",
];

const NOUNS: &[&str] = &[
    "albatross",
    "anchor",
    "barge",
    "barque",
    "beacon",
    "bollard",
    "bosun",
    "bowline",
    "brig",
    "buoy",
    "canoe",
    "capstan",
    "catamaran",
    "clipper",
    "compass",
    "coracle",
    "cormorant",
    "curlew",
    "cutter",
    "dinghy",
    "dolphin",
    "dory",
    "drifter",
    "ferry",
    "foghorn",
    "frigate",
    "galley",
    "gannet",
    "gunwale",
    "halyard",
    "harbour",
    "heron",
    "jetty",
    "kayak",
    "keel",
    "ketch",
    "lantern",
    "lighter",
    "limpet",
    "lugger",
    "mainsail",
    "mariner",
    "mooring",
    "narwhal",
    "oar",
    "osprey",
    "otter",
    "packet",
    "pelican",
    "petrel",
    "pilot",
    "pinnace",
    "plover",
    "porpoise",
    "puffin",
    "punt",
    "quay",
    "rigging",
    "rudder",
    "sandpiper",
    "schooner",
    "scow",
    "seal",
    "sextant",
    "shanty",
    "sloop",
    "spar",
    "spinnaker",
    "starling",
    "tern",
    "tiller",
    "trawler",
    "tug",
    "walrus",
    "wherry",
    "yawl",
];

/// A new container id: 64 hexadecimal digits whose first 12 are not a plain number (the short id would be
/// mistaken for one by tools, as Docker found).
pub(super) fn new_id() -> Result<String> {
    loop {
        let mut bytes = [0_u8; 32];
        random(&mut bytes)?;
        let id = hex::encode(bytes);
        if id[..12].bytes().any(|b| b.is_ascii_alphabetic()) {
            return Ok(id);
        }
    }
}

/// A name for a container that was given none; from the second `attempt` on with a number behind it.
pub(super) fn generate(attempt: u32) -> Result<String> {
    let mut bytes = [0_u8; 4];
    random(&mut bytes)?;
    let adjective = ADJECTIVES[usize::from(u16::from_le_bytes([bytes[0], bytes[1]])) % ADJECTIVES.len()];
    let noun = NOUNS[usize::from(u16::from_le_bytes([bytes[2], bytes[3]])) % NOUNS.len()];
    Ok(if attempt == 0 {
        format!("{adjective}_{noun}")
    } else {
        format!("{adjective}_{noun}{attempt}")
    })
}

/// Checks a name given by a client and strips the optional leading slash.
///
/// # Errors
/// `InvalidParameter` with Docker's text.
pub(super) fn check(name: &str) -> Result<&str> {
    let bare = name.strip_prefix('/').unwrap_or(name);
    let mut bytes = bare.bytes();
    let ok = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bare.len() >= 2
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if ok {
        Ok(bare)
    } else {
        Err(Error::invalid(format!(
            "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        )))
    }
}

fn random(bytes: &mut [u8]) -> Result<()> {
    SystemRandom::new()
        .fill(bytes)
        .map_err(|_| Error::system("getrandom failed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_docker_s_rule() {
        assert_eq!(check("/web-1").unwrap(), "web-1");
        for bad in ["", "/", "a", "a/b", "-x", "ü1", "a b", "_x"] {
            let error = check(bad).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("Invalid container name ({bad}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
            );
        }
    }

    #[test]
    fn generated_names_and_ids_are_valid() {
        for attempt in 0..50 {
            let name = generate(attempt % 3).unwrap();
            assert_eq!(check(&name).unwrap(), name);
            assert_eq!(new_id().unwrap().len(), 64);
        }
    }
}
