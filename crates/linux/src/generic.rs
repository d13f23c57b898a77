//! Generic netlink: families with names, whose numbers the kernel gives out as
//! they are loaded.
//!
//! Sources: `include/uapi/linux/genetlink.h`;
//! `Documentation/userspace-api/netlink/intro.rst`.

use netlink_packet_core::{DecodeError, NlasIterator};

use crate::netfilter::wire::Writer;
use crate::netlink::{Error, Message, Request, Socket};

/// `GENL_ID_CTRL`: the family that knows the others.
const CONTROLLER: u16 = 16;
/// `CTRL_CMD_GETFAMILY`.
const GET_FAMILY: u8 = 3;
/// `CTRL_ATTR_FAMILY_ID`.
const FAMILY_ID: u16 = 1;
/// `CTRL_ATTR_FAMILY_NAME`.
const FAMILY_NAME: u16 = 2;
/// The version of the controller's interface.
const CONTROLLER_VERSION: u8 = 2;

/// Length of `struct genlmsghdr`: command, version, two reserved bytes.
const HEADER_LENGTH: usize = 4;

/// A part of the kernel that is spoken to by generic netlink.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Description {
    /// Its name on the wire.
    pub(crate) name: &'static str,
    /// The version of its interface.
    pub(crate) version: u8,
    /// What it is, in words for people.
    pub(crate) feature: &'static str,
    /// The module that brings it.
    pub(crate) module: &'static str,
}

/// A family that the running kernel has, by its number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Family {
    id: u16,
    version: u8,
}

impl Family {
    /// Asks the kernel for the family, which loads its module where modules can
    /// be loaded on demand. A kernel without it is an [`Error::Missing`].
    pub(crate) fn resolve(socket: &mut Socket, wanted: &Description) -> Result<Self, Error> {
        let purpose = format!("find {} in the kernel", wanted.feature);
        let mut attributes = Writer::default();
        attributes.put_text(FAMILY_NAME, wanted.name);
        let controller = Self {
            id: CONTROLLER,
            version: CONTROLLER_VERSION,
        };
        let request = controller.request(&purpose, GET_FAMILY, 0, &attributes.bytes);
        let found = socket.query(&request, |message| {
            for attribute in NlasIterator::new(attributes_of(message)) {
                let attribute = attribute?;
                if attribute.kind() == FAMILY_ID {
                    let id = attribute.value().try_into().map_err(|_| {
                        DecodeError::from("the number of a family has a wrong length")
                    })?;
                    return Ok(Some(u16::from_ne_bytes(id)));
                }
            }
            Ok(None)
        });
        match found {
            Ok(ids) => match ids.first() {
                Some(&id) => Ok(Self {
                    id,
                    version: wanted.version,
                }),
                None => Err(Error::Malformed {
                    purpose,
                    reason: "it gives no number".to_owned(),
                }),
            },
            Err(error) if error.not_found() => Err(Error::Missing {
                purpose,
                feature: wanted.feature.to_owned(),
                module: wanted.module.to_owned(),
            }),
            Err(error) => Err(error),
        }
    }

    /// A request of the family; `attributes` are encoded.
    pub(crate) fn request(
        self,
        purpose: impl Into<String>,
        command: u8,
        flags: u16,
        attributes: &[u8],
    ) -> Request {
        let mut body = Vec::with_capacity(HEADER_LENGTH + attributes.len());
        body.extend([command, self.version, 0, 0]);
        body.extend(attributes);
        Request::new(purpose, self.id, flags, body)
    }

    #[cfg(test)]
    pub(crate) fn numbered(id: u16) -> Self {
        Self { id, version: 1 }
    }
}

/// The attributes of a generic netlink message.
pub(crate) fn attributes_of(message: Message<'_>) -> &[u8] {
    message.payload.get(HEADER_LENGTH..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Protocol;

    #[test]
    fn a_family_the_kernel_always_has_is_found_and_an_unknown_one_is_named() {
        let mut socket = Socket::open(Protocol::Generic).unwrap();
        let mut wanted = Description {
            name: "nlctrl",
            version: CONTROLLER_VERSION,
            feature: "the controller of generic netlink",
            module: "none",
        };
        let family = Family::resolve(&mut socket, &wanted).unwrap();
        assert_eq!(family.id, CONTROLLER);
        wanted = Description {
            name: "no-such-family",
            feature: "magic",
            module: "wand",
            ..wanted
        };
        let error = Family::resolve(&mut socket, &wanted).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot find magic in the kernel: this kernel has no magic; load the module wand \
             (`modprobe wand`) or run a kernel that has it"
        );
    }
}
