//! What must hold for any image reference.

use skiff_registry_client::Reference;

/// A reference that is accepted is the same after it was printed, in the long and in the short form.
pub(crate) fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(parsed) = Reference::parse(text) else {
        return;
    };
    for printed in [parsed.canonical(), parsed.familiar()] {
        let again = Reference::parse(&printed).unwrap_or_else(|e| panic!("{text:?} became {printed:?}: {e}"));
        assert_eq!(
            again.canonical(),
            parsed.canonical(),
            "{text:?} became {printed:?}"
        );
    }
}
