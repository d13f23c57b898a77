//! Messages as the kernel sends them: several in one datagram, each with a
//! header of 16 bytes and a payload.

use netlink_packet_core::{NLMSG_DONE, NLMSG_ERROR, NlasIterator};
use rustix::io::Errno;

use super::Refusal;

/// Length of `struct nlmsghdr`.
pub(super) const HEADER_LENGTH: usize = 16;
/// Messages and attributes start at multiples of this.
const ALIGNMENT: usize = 4;

/// `nlmsg_flags` of an answer: the request's payload is not repeated.
const NLM_F_CAPPED: u16 = 0x100;
/// `nlmsg_flags` of an answer: attributes of the extended acknowledgement follow.
const NLM_F_ACK_TLVS: u16 = 0x200;
/// `NLMSGERR_ATTR_MSG`: a text.
const ATTRIBUTE_TEXT: u16 = 1;
/// `NLMSGERR_ATTR_OFFS`: offset of the offending attribute.
const ATTRIBUTE_OFFSET: u16 = 2;

/// One netlink message, borrowed from the buffer it was received in.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub message_type: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`: that of the request it answers, zero for notifications.
    pub sequence: u32,
    /// `nlmsg_pid`: of a notification, the number of the socket that asked for
    /// the change; zero where the kernel does not say.
    pub port: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

impl Message<'_> {
    /// For `NLMSG_ERROR` and `NLMSG_DONE`: how the request ended. `None` for
    /// every other message, and for a malformed one.
    pub fn outcome(&self) -> Option<Result<(), Refusal>> {
        let rest_of_request = match self.message_type {
            NLMSG_ERROR => true,
            NLMSG_DONE => false,
            _ => return None,
        };
        let code = match self.payload.first_chunk::<4>() {
            Some(bytes) => i32::from_ne_bytes(*bytes),
            // Some families end a dump with an empty message.
            None if self.message_type == NLMSG_DONE => 0,
            None => return None,
        };
        if code == 0 {
            return Some(Ok(()));
        }
        let mut refusal = Refusal {
            errno: match code {
                -4095..0 => Errno::from_raw_os_error(-code),
                // Not an error number (linux/err.h: MAX_ERRNO).
                _ => Errno::PROTO,
            },
            text: None,
            offset: None,
        };
        if self.flags & NLM_F_ACK_TLVS != 0 {
            let attributes = self.payload.get(4..).and_then(|rest| {
                if !rest_of_request {
                    return Some(rest);
                }
                let length = if self.flags & NLM_F_CAPPED != 0 {
                    HEADER_LENGTH
                } else {
                    let length = u32::from_ne_bytes(*rest.first_chunk::<4>()?);
                    align(usize::try_from(length).ok()?)
                };
                rest.get(length..)
            });
            for attribute in NlasIterator::new(attributes.unwrap_or_default()).flatten() {
                match attribute.kind() {
                    ATTRIBUTE_TEXT => {
                        let text = String::from_utf8_lossy(attribute.value());
                        refusal.text = Some(text.trim_end_matches('\0').to_owned());
                    }
                    ATTRIBUTE_OFFSET => {
                        refusal.offset = attribute
                            .value()
                            .first_chunk::<4>()
                            .map(|bytes| u32::from_ne_bytes(*bytes));
                    }
                    _ => {}
                }
            }
        }
        Some(Err(refusal))
    }
}

/// The messages of one datagram, in order. Ends silently at a message that
/// claims to be longer than what is there: the kernel sends none such.
#[derive(Debug, Clone)]
pub struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    /// Reads the messages of `datagram`.
    pub fn new(datagram: &'a [u8]) -> Self {
        Self { rest: datagram }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let (header, _) = self.rest.split_first_chunk::<HEADER_LENGTH>()?;
        let word = |at: usize| {
            u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let length = usize::try_from(word(0)).ok()?;
        let payload = self.rest.get(HEADER_LENGTH..length)?;
        self.rest = self.rest.get(align(length)..).unwrap_or_default();
        Some(Message {
            message_type: half(4),
            flags: half(6),
            sequence: word(8),
            port: word(12),
            payload,
        })
    }
}

/// `NLMSG_ALIGN`.
pub(super) fn align(length: usize) -> usize {
    length.div_ceil(ALIGNMENT) * ALIGNMENT
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(message_type: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let length = u32::try_from(HEADER_LENGTH + payload.len()).unwrap();
        bytes.extend(length.to_ne_bytes());
        bytes.extend(message_type.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(7u32.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(payload);
        bytes.resize(align(bytes.len()), 0);
        bytes
    }

    fn text_attribute(text: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(u16::try_from(4 + text.len()).unwrap().to_ne_bytes());
        bytes.extend(ATTRIBUTE_TEXT.to_ne_bytes());
        bytes.extend(text);
        bytes.resize(align(bytes.len()), 0);
        bytes
    }

    #[test]
    fn several_messages_of_one_datagram_come_in_order() {
        let mut datagram = message(16, 2, &[1, 2, 3]);
        datagram.extend(message(20, 0, &[]));
        let found: Vec<_> = Messages::new(&datagram)
            .map(|m| (m.message_type, m.flags, m.sequence, m.payload.to_vec()))
            .collect();
        assert_eq!(found, [(16, 2, 7, vec![1, 2, 3]), (20, 0, 7, Vec::new())]);
    }

    #[test]
    fn an_acknowledgement_is_a_success() {
        let datagram = message(NLMSG_ERROR, NLM_F_CAPPED, &[0; 20]);
        let outcome = Messages::new(&datagram).next().unwrap().outcome();
        assert_eq!(outcome, Some(Ok(())));
    }

    #[test]
    fn the_kernels_words_are_found_behind_a_capped_and_a_full_request() {
        let mut capped = (-17i32).to_ne_bytes().to_vec();
        capped.extend([0; HEADER_LENGTH]);
        capped.extend(text_attribute(b"File exists here\0"));
        let mut full = (-17i32).to_ne_bytes().to_vec();
        full.extend(message(24, 5, &[9; 13]));
        full.extend(text_attribute(b"File exists here\0"));
        for (flags, payload) in [
            (NLM_F_CAPPED | NLM_F_ACK_TLVS, capped),
            (NLM_F_ACK_TLVS, full),
        ] {
            let datagram = message(NLMSG_ERROR, flags, &payload);
            let refusal = Messages::new(&datagram)
                .next()
                .unwrap()
                .outcome()
                .unwrap()
                .unwrap_err();
            assert_eq!(refusal.errno, Errno::EXIST);
            assert_eq!(refusal.text.as_deref(), Some("File exists here"));
        }
    }

    proptest! {
        #[test]
        fn no_datagram_makes_the_reader_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            length in 0u32..220, kind in 2u16..4, flags in any::<u16>(),
        ) {
            for message in Messages::new(&bytes) {
                let _ = message.outcome();
            }
            let mut datagram = bytes.clone();
            if datagram.len() >= HEADER_LENGTH {
                datagram[..4].copy_from_slice(&length.to_ne_bytes());
                datagram[4..6].copy_from_slice(&kind.to_ne_bytes());
                datagram[6..8].copy_from_slice(&flags.to_ne_bytes());
            }
            for message in Messages::new(&datagram) {
                let _ = message.outcome();
            }
        }
    }
}
