//! Settings of a network namespace that the kernel tells over netlink: asked in a
//! moment, however many namespaces there are, whereas a path below `/proc/sys/net`
//! is walked the longer the more there are.
//!
//! Source: `include/uapi/linux/netconf.h`.

use netlink_packet_core::{DecodeError, NlasIterator, parse_i32};
use netlink_packet_route::AddressFamily;

use crate::netlink::{Error, Message, Request, Socket};
use crate::sysctl::Family;

const RTM_NEWNETCONF: u16 = 80;
const RTM_GETNETCONF: u16 = 82;
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_FORWARDING: u16 = 2;
/// `NETCONFA_IFINDEX_ALL`: what `conf/all` is among the settings.
const ALL: i32 = -1;
/// `struct netconfmsg`, padded: the family.
const HEADER: usize = 4;

/// Whether packets of a family are forwarded between all interfaces
/// ([`crate::sysctl::Setting::forwarding`] changes it).
pub fn is_forwarding(socket: &mut Socket, family: Family) -> Result<bool, Error> {
    let family = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    let mut body = vec![u8::from(family), 0, 0, 0];
    body.extend(8u16.to_ne_bytes());
    body.extend(NETCONFA_IFINDEX.to_ne_bytes());
    body.extend(ALL.to_ne_bytes());
    let request = Request::new("ask whether packets are forwarded", RTM_GETNETCONF, 0, body);
    Ok(socket.query(&request, decode)?.contains(&true))
}

fn decode(message: Message<'_>) -> Result<Option<bool>, DecodeError> {
    if message.message_type != RTM_NEWNETCONF {
        return Ok(None);
    }
    let attributes = message.payload.get(HEADER..).unwrap_or_default();
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        if attribute.kind() == NETCONFA_FORWARDING {
            return Ok(Some(parse_i32(attribute.value())? != 0));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::NetworkNamespace;
    use crate::sysctl::Setting;

    #[test]
    fn forwarding_is_what_the_setting_says() {
        let namespace = NetworkNamespace::create().unwrap();
        let mut socket = namespace.route_socket().unwrap();
        for family in [Family::V4, Family::V6] {
            for on in [0, 1, 0] {
                namespace
                    .run(|| Setting::forwarding(family).write(on))
                    .unwrap()
                    .unwrap();
                assert_eq!(is_forwarding(&mut socket, family).unwrap(), on == 1);
            }
        }
    }
}
