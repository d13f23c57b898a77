//! Netlink attributes as netfilter writes them: type and length in host order,
//! numbers in network order, strings with a closing zero
//! (`linux/netlink.h`, `linux/netfilter/nfnetlink.h`).

use std::borrow::Cow;

/// Length of `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;
/// Length of `struct nfgenmsg`, which follows it in every netfilter message.
pub(crate) const NFGEN: usize = 4;

pub(crate) const NLM_F_REQUEST: u16 = 0x1;
pub(crate) const NLM_F_ACK: u16 = 0x4;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_DUMP_INTR: u16 = 0x10;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;
pub(crate) const NLM_F_EXCL: u16 = 0x200;

pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;
pub(crate) const NLM_F_ACK_TLVS: u16 = 0x200;
pub(crate) const NLM_F_CAPPED: u16 = 0x100;

const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

const fn align(length: usize) -> usize {
    (length + 3) & !3
}

/// An opened attribute or message whose length is not known yet.
#[must_use]
pub(crate) struct Open(usize);

/// Appends messages and attributes to one growing buffer.
#[derive(Debug, Default, Clone)]
pub(crate) struct Writer {
    pub(crate) bytes: Vec<u8>,
}

impl Writer {
    /// Starts a netfilter message. `family` and `resource` fill `nfgenmsg`.
    pub(crate) fn open_message(
        &mut self,
        kind: u16,
        flags: u16,
        sequence: u32,
        family: u8,
        resource: u16,
    ) -> Open {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes
            .extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.push(family);
        self.bytes.push(0); // NFNETLINK_V0
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        Open(start)
    }

    pub(crate) fn close_message(&mut self, open: Open) {
        let length = u32::try_from(self.bytes.len() - open.0)
            .expect("a message is closed long before four gigabytes");
        self.bytes[open.0..open.0 + 4].copy_from_slice(&length.to_ne_bytes());
    }

    pub(crate) fn put(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(4 + value.len())
            .expect("values are names, keys and data, all far below 64 KiB");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(align(self.bytes.len()), 0);
    }

    pub(crate) fn put_text(&mut self, kind: u16, value: &str) {
        let length = u16::try_from(5 + value.len()).expect("names are far below 64 KiB");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.bytes.resize(align(self.bytes.len()), 0);
    }

    pub(crate) fn put_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    pub(crate) fn put_u64(&mut self, kind: u16, value: u64) {
        self.put(kind, &value.to_be_bytes());
    }

    pub(crate) fn open(&mut self, kind: u16) -> Open {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&0u16.to_ne_bytes());
        self.bytes
            .extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        Open(start)
    }

    pub(crate) fn close(&mut self, open: Open) {
        let length = u16::try_from(self.bytes.len() - open.0)
            .expect("nested attributes are split before they reach 64 KiB");
        self.bytes[open.0..open.0 + 2].copy_from_slice(&length.to_ne_bytes());
    }
}

/// Walks the attributes of a message or of a nested attribute. Stops at the
/// first one whose length makes no sense.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes([*self.0.first()?, *self.0.get(1)?]));
        let kind = u16::from_ne_bytes([*self.0.get(2)?, *self.0.get(3)?]) & NLA_TYPE_MASK;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some((kind, value))
    }
}

impl<'a> Attributes<'a> {
    /// The value of the first attribute of a kind.
    pub(crate) fn find(self, kind: u16) -> Option<&'a [u8]> {
        let mut all = self;
        all.find_map(|(k, value)| (k == kind).then_some(value))
    }

    pub(crate) fn u32(self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.find(kind)?.try_into().ok()?))
    }

    pub(crate) fn u64(self, kind: u16) -> Option<u64> {
        Some(u64::from_be_bytes(self.find(kind)?.try_into().ok()?))
    }

    pub(crate) fn text(self, kind: u16) -> Option<Cow<'a, str>> {
        let value = self.find(kind)?;
        let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
        Some(String::from_utf8_lossy(&value[..end]))
    }

    pub(crate) fn nested(self, kind: u16) -> Option<Attributes<'a>> {
        self.find(kind).map(Attributes)
    }
}

/// One message of a datagram.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// What follows `nlmsghdr`.
    pub(crate) payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes behind `nfgenmsg`.
    pub(crate) fn attributes(self) -> Attributes<'a> {
        Attributes(self.payload.get(NFGEN..).unwrap_or_default())
    }

    /// The error number of an `NLMSG_ERROR` or `NLMSG_DONE` message; 0 means done.
    pub(crate) fn errno(self) -> i32 {
        self.payload
            .get(..4)
            .and_then(|b| b.try_into().ok())
            .map_or(0, |b| -i32::from_ne_bytes(b))
    }

    /// The kernel's own words and the offset of the attribute it found wrong
    /// (`NLMSGERR_ATTR_MSG`, `NLMSGERR_ATTR_OFFS`).
    pub(crate) fn explanation(self) -> (Option<String>, Option<usize>) {
        if self.flags & NLM_F_ACK_TLVS == 0 {
            return (None, None);
        }
        let echoed = if self.flags & NLM_F_CAPPED != 0 {
            HEADER
        } else {
            self.payload
                .get(4..8)
                .and_then(|b| b.try_into().ok())
                .map_or(HEADER, |b| align(u32::from_ne_bytes(b) as usize))
        };
        let attributes = Attributes(self.payload.get(4 + echoed..).unwrap_or_default());
        let text = attributes.text(1).map(Cow::into_owned);
        let offset = attributes
            .find(2)
            .and_then(|b| b.try_into().ok())
            .map(|b| u32::from_ne_bytes(b) as usize);
        (text, offset)
    }
}

/// Walks the messages of a datagram.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let length = u32::from_ne_bytes(self.0.get(..4)?.try_into().ok()?) as usize;
        let message = Message {
            kind: u16::from_ne_bytes(self.0.get(4..6)?.try_into().ok()?),
            flags: u16::from_ne_bytes(self.0.get(6..8)?.try_into().ok()?),
            sequence: u32::from_ne_bytes(self.0.get(8..12)?.try_into().ok()?),
            payload: self.0.get(HEADER..length)?,
        };
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_as_written() {
        let mut writer = Writer::default();
        writer.put_u32(1, 7);
        let nest = writer.open(2);
        writer.put_text(1, "abc");
        writer.put(3, &[1, 2, 3, 4, 5]);
        writer.close(nest);
        writer.put_u64(4, 9);
        let all = Attributes(&writer.bytes);
        assert_eq!(all.u32(1), Some(7));
        assert_eq!(all.u64(4), Some(9));
        let inner = all.nested(2).expect("written above");
        assert_eq!(inner.text(1).as_deref(), Some("abc"));
        assert_eq!(inner.find(3), Some(&[1, 2, 3, 4, 5][..]));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            for message in Messages(&bytes) {
                let _ = message.errno();
                let _ = message.explanation();
                for (_, value) in message.attributes() {
                    let _ = Attributes(value).count();
                }
            }
            let _ = Attributes(&bytes).count();
        }
    }
}
