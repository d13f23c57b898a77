//! Requests to the kernel.

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkSerializable};
use netlink_packet_route::RouteNetlinkMessage;

use rustix::io::Errno;

use super::message::{HEADER_LENGTH, align};
use super::{Error, Refusal};

/// One request, encoded, with the words that describe it in an error.
#[derive(Debug, Clone)]
pub struct Request {
    purpose: String,
    message_type: u16,
    flags: u16,
    body: Vec<u8>,
    needs: Option<Needs>,
}

/// A part of the kernel, in words, and the module that brings it.
#[derive(Debug, Clone, Copy)]
struct Needs {
    feature: &'static str,
    module: &'static str,
}

/// The kernel's words for a kind of link it does not know
/// (`rtnl_newlink` in `net/core/rtnetlink.c`).
const UNKNOWN_KIND: &str = "Unknown device type";

impl Request {
    /// A request of any netlink family. `purpose` is a verb phrase ("add route
    /// 10.0.0.0/24") that completes "cannot …". `NLM_F_REQUEST`, and
    /// `NLM_F_ACK` where it is needed, are added to `flags`.
    pub fn new(purpose: impl Into<String>, message_type: u16, flags: u16, body: Vec<u8>) -> Self {
        Self {
            purpose: purpose.into(),
            message_type,
            flags: flags | NLM_F_REQUEST,
            body,
            needs: None,
        }
    }

    /// A route netlink request.
    pub fn route(purpose: impl Into<String>, message: &RouteNetlinkMessage, flags: u16) -> Self {
        let mut body = vec![0; message.buffer_len()];
        message.serialize(&mut body);
        Self::new(purpose, message.message_type(), flags, body)
    }

    /// For a request that makes a link: what the kernel must have to know its
    /// kind ("veth devices"), and the module that brings it. Where the kernel
    /// does not know the kind, the request fails with [`Error::Missing`].
    #[must_use]
    pub fn needing(mut self, feature: &'static str, module: &'static str) -> Self {
        self.needs = Some(Needs { feature, module });
        self
    }

    /// The error that the kernel's refusal of this request is.
    pub(super) fn refused(&self, refusal: Refusal) -> Error {
        let purpose = self.purpose.clone();
        match self.needs {
            Some(Needs { feature, module })
                if refusal.errno == Errno::OPNOTSUPP
                    && refusal.text.as_deref() == Some(UNKNOWN_KIND) =>
            {
                Error::Missing {
                    purpose,
                    feature: feature.to_owned(),
                    module: module.to_owned(),
                }
            }
            _ => Error::Refused { purpose, refusal },
        }
    }

    /// What the request is to do, as a verb phrase.
    pub fn purpose(&self) -> &str {
        &self.purpose
    }

    /// Appends the encoded message to `buffer`. Port 0: the kernel fills it in.
    /// Without `acknowledged`, the kernel answers only when it refuses.
    pub(super) fn encode(&self, sequence: u32, acknowledged: bool, buffer: &mut Vec<u8>) {
        let start = buffer.len();
        let length = u32::try_from(HEADER_LENGTH + self.body.len())
            .expect("a request is far below 4 GiB: attributes hold 64 KiB each");
        buffer.extend(length.to_ne_bytes());
        buffer.extend(self.message_type.to_ne_bytes());
        let flags = match acknowledged {
            true => self.flags | NLM_F_ACK,
            false => self.flags,
        };
        buffer.extend(flags.to_ne_bytes());
        buffer.extend(sequence.to_ne_bytes());
        buffer.extend(0u32.to_ne_bytes());
        buffer.extend(&self.body);
        buffer.resize(start + align(buffer.len() - start), 0);
    }

    /// The encoded message alone.
    #[cfg(test)]
    pub(crate) fn encoded(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.encode(1, true, &mut bytes);
        bytes
    }

    /// The same request as a dump.
    pub(super) fn with_flags(mut self, flags: u16) -> Self {
        self.flags |= flags;
        self
    }
}
