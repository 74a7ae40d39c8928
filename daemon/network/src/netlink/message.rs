//! Netlink messages: a header, a fixed part that depends on the kind, and a tree of attributes
//! (`linux/netlink.h`). Everything is aligned to four bytes and in the machine's byte order, unless a subsystem
//! says otherwise (nf_tables: numbers are big-endian).

/// Length of `struct nlmsghdr`.
pub(crate) const HEADER_LEN: usize = 16;
/// Length of `struct nlattr`.
const ATTRIBUTE_LEN: usize = 4;
/// Marks an attribute whose value is attributes.
const NLA_F_NESTED: u16 = 1 << 15;
/// What is left of an attribute's type without its flags.
const NLA_TYPE_MASK: u16 = !(NLA_F_NESTED | 1 << 14);

pub(crate) const NLM_F_REQUEST: u16 = 0x1;
pub(crate) const NLM_F_ACK: u16 = 0x4;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_REPLACE: u16 = 0x100;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;

/// A request under construction, together with what it is for: "create the bridge docker0".
#[derive(Debug)]
pub(crate) struct Message {
    bytes: Vec<u8>,
    purpose: String,
}

impl Message {
    /// A request of `kind` with additional `flags` and the kind's `fixed` part.
    pub(crate) fn new(purpose: impl Into<String>, kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER_LEN];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(fixed);
        let mut message = Self {
            bytes,
            purpose: purpose.into(),
        };
        message.pad();
        message
    }

    /// Appends an attribute.
    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let start = self.open(kind);
        self.bytes.extend_from_slice(value);
        self.close(start);
        self
    }

    /// Appends a number in the machine's byte order.
    pub(crate) fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// Appends a number in network byte order, as nf_tables wants them.
    pub(crate) fn big_endian(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attribute(kind, &value.to_be_bytes())
    }

    /// Appends a text with its terminating NUL.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let start = self.open(kind);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.close(start);
        self
    }

    /// Appends an attribute that consists of the attributes which `fill` appends.
    pub(crate) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.nested_after(kind, &[], fill)
    }

    /// As [`Message::nested`], with a fixed part in front of the inner attributes.
    pub(crate) fn nested_after(
        &mut self,
        kind: u16,
        fixed: &[u8],
        fill: impl FnOnce(&mut Self),
    ) -> &mut Self {
        let start = self.open(kind | NLA_F_NESTED);
        self.bytes.extend_from_slice(fixed);
        self.pad();
        fill(self);
        self.close(start);
        self
    }

    /// The finished bytes with length and sequence number, and the purpose.
    pub(crate) fn finish(mut self, sequence: u32) -> (Vec<u8>, String) {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        (self.bytes, self.purpose)
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize) {
        // Our longest attribute is a rule of a few hundred bytes.
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// A message from the kernel.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    /// Message type.
    pub(crate) kind: u16,
    /// Message flags.
    pub(crate) flags: u16,
    /// Sequence number of the request it answers.
    pub(crate) sequence: u32,
    /// Everything behind the header.
    pub(crate) payload: Vec<u8>,
}

/// Splits what one recv(2) returned into messages. Stops at the first that is cut short.
pub(crate) fn replies(mut bytes: &[u8]) -> Vec<Reply> {
    let mut found = Vec::new();
    while let (Some(length), Some(kind), Some(flags), Some(sequence)) = (
        u32_at(bytes, 0),
        u16_at(bytes, 4),
        u16_at(bytes, 6),
        u32_at(bytes, 8),
    ) {
        let Some(payload) = usize::try_from(length)
            .ok()
            .and_then(|end| bytes.get(HEADER_LEN..end))
        else {
            break;
        };
        found.push(Reply {
            kind,
            flags,
            sequence,
            payload: payload.to_vec(),
        });
        let next = (HEADER_LEN + payload.len()).next_multiple_of(4);
        bytes = bytes.get(next..).unwrap_or_default();
    }
    found
}

/// The attributes in `bytes`: their type without flags, and their value.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & NLA_TYPE_MASK;
        let value = bytes.get(ATTRIBUTE_LEN..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of type `kind` in `bytes`.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(found, _)| *found == kind)
        .map(|(_, value)| value)
}

/// A text attribute's value without its NUL.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// The 16-bit number at `offset`, in the machine's byte order.
pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    let raw = bytes.get(offset..offset + 2)?;
    Some(u16::from_ne_bytes(raw.try_into().ok()?))
}

/// The 32-bit number at `offset`, in the machine's byte order.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let raw = bytes.get(offset..offset + 4)?;
    Some(u32::from_ne_bytes(raw.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attributes_nest_and_are_padded() {
        let mut message = Message::new("test", 16, NLM_F_ACK, &[1, 2, 3, 4]);
        message.text(3, "lo").nested(18, |inner| {
            inner.text(1, "veth").number(2, 7);
        });
        let (bytes, purpose) = message.finish(42);
        assert_eq!(purpose, "test");
        assert_eq!(bytes.len() % 4, 0);

        let parsed = replies(&bytes);
        assert_eq!(parsed.len(), 1);
        assert_eq!(
            (parsed[0].kind, parsed[0].flags, parsed[0].sequence),
            (16, NLM_F_ACK | NLM_F_REQUEST, 42)
        );
        assert_eq!(parsed[0].payload[..4], [1, 2, 3, 4]);
        let tree = &parsed[0].payload[4..];
        assert_eq!(attribute(tree, 3).map(text).as_deref(), Some("lo"));
        let inner = attribute(tree, 18).unwrap();
        assert_eq!(attribute(inner, 1).map(text).as_deref(), Some("veth"));
        assert_eq!(attribute(inner, 2).and_then(|value| u32_at(value, 0)), Some(7));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_panic(bytes: Vec<u8>) {
            for reply in replies(&bytes) {
                for (_, value) in attributes(&reply.payload) {
                    let _ = attributes(value).count();
                }
            }
            let _ = attributes(&bytes).count();
        }
    }
}
