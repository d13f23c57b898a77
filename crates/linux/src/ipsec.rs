//! IPsec policies: which packets the kernel transforms, or refuses where they come
//! untransformed.
//!
//! Source: `include/uapi/linux/xfrm.h`.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};

use ipnet::IpNet;
use netlink_packet_core::{DecodeError, NlasIterator};
use rustix::io::Errno;

use crate::netlink::{Error, Message, Messages, Protocol, Request, Socket};

const XFRM_MSG_NEWPOLICY: u16 = 0x13;
const XFRM_MSG_GETPOLICY: u16 = 0x15;
const XFRM_MSG_EXPIRE: u16 = 0x18;
const XFRM_MSG_GETDEFAULT: u16 = 0x28;
/// `XFRMNLGRP_EXPIRE`: policies whose time is up, and associations.
const GROUP_EXPIRE: u32 = 2;
/// `XFRMNLGRP_POLICY`: policies and their defaults change.
const GROUP_POLICY: u32 = 4;
const XFRMA_TMPL: u16 = 5;
const XFRMA_IF_ID: u16 = 31;
/// `struct xfrm_userpolicy_id`.
const ID_LENGTH: usize = 64;
/// `struct xfrm_userpolicy_info`, and where its fields are.
const INFO_LENGTH: usize = 168;
const DESTINATION: usize = 0;
const SOURCE: usize = 16;
const FAMILY: usize = 40;
const DESTINATION_LENGTH: usize = 42;
const SOURCE_LENGTH: usize = 43;
const DIRECTION: usize = 160;
const ACTION: usize = 161;
/// `XFRM_POLICY_BLOCK` of a policy, `XFRM_USERPOLICY_BLOCK` of a default.
const BLOCK: u8 = 1;
/// `AF_INET` and `AF_INET6`.
const FAMILIES: (u16, u16) = (2, 10);

/// Which packets a policy is about; those to and from the node's own processes have
/// a third kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// Those that leave, forwarded ones among them (`XFRM_POLICY_OUT`).
    Out,
    /// Those that were received and are forwarded (`XFRM_POLICY_FWD`).
    Forward,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::Out => "out",
            Direction::Forward => "fwd",
        })
    }
}

/// A policy that has packets transformed, or refuses them. Which protocols and ports
/// it is about is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Policy {
    /// Of the packets.
    pub direction: Direction,
    /// Where they come from.
    pub from: IpNet,
    /// Where they go to.
    pub to: IpNet,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Policy {
            direction,
            from,
            to,
        } = self;
        write!(f, "IPsec policy {direction} from {from} to {to}")
    }
}

/// Lists the policies that forwarded packets meet, in both families: those that let
/// packets be as they are left out, and those of IPsec interfaces. Where the rule is
/// to refuse what no policy is about, that is one about everything.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn list(socket: &mut Socket) -> Result<Vec<Policy>, Error> {
    let request = Request::new(
        "list IPsec policies",
        XFRM_MSG_GETPOLICY,
        0,
        vec![0; ID_LENGTH],
    );
    let mut found = socket.dump(request, |message| match message.message_type {
        XFRM_MSG_NEWPOLICY => parse(message.payload),
        _ => Ok(None),
    })?;
    let request = Request::new(
        "read what becomes of packets without IPsec policy",
        XFRM_MSG_GETDEFAULT,
        0,
        vec![0; 4],
    );
    let defaults = socket.query(&request, |message: Message<'_>| {
        Ok(match (message.message_type, message.payload) {
            (XFRM_MSG_GETDEFAULT, [_, forward, out, ..]) => Some((*forward, *out)),
            _ => None,
        })
    })?;
    for (forward, out) in defaults {
        for (default, direction) in [(forward, Direction::Forward), (out, Direction::Out)] {
            let any = [
                IpNet::new_assert(Ipv4Addr::UNSPECIFIED.into(), 0),
                IpNet::new_assert(Ipv6Addr::UNSPECIFIED.into(), 0),
            ];
            let blocked = any.into_iter().filter(|_| default == BLOCK);
            found.extend(blocked.map(|any| Policy {
                direction,
                from: any,
                to: any,
            }));
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// A `struct xfrm_userpolicy_info` with attributes.
fn parse(payload: &[u8]) -> Result<Option<Policy>, DecodeError> {
    let Some((info, attributes)) = payload.split_at_checked(INFO_LENGTH) else {
        return Err(DecodeError::from("IPsec policy cut short"));
    };
    let direction = match info[DIRECTION] {
        1 => Direction::Out,
        2 => Direction::Forward,
        _ => return Ok(None),
    };
    let (mut transforms, mut interface) = (false, false);
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        match attribute.kind() {
            XFRMA_TMPL => transforms |= !attribute.value().is_empty(),
            XFRMA_IF_ID => interface |= attribute.value().iter().any(|byte| *byte != 0),
            _ => {}
        }
    }
    if interface || !(transforms || info[ACTION] == BLOCK) {
        return Ok(None);
    }
    let family = u16::from_ne_bytes([info[FAMILY], info[FAMILY + 1]]);
    let net = |at: usize, length: usize| {
        let bytes: [u8; 16] = info[at..at + 16].try_into().unwrap_or_default();
        let [a, b, c, d, ..] = bytes;
        let address = match family {
            family if family == FAMILIES.0 => Ipv4Addr::new(a, b, c, d).into(),
            family if family == FAMILIES.1 => Ipv6Addr::from(bytes).into(),
            _ => return Err(DecodeError::from("IPsec policy of an unknown family")),
        };
        IpNet::new(address, info[length])
            .map(|net| net.trunc())
            .map_err(|_| DecodeError::from("IPsec policy with a prefix that is too long"))
    };
    Ok(Some(Policy {
        direction,
        from: net(SOURCE, SOURCE_LENGTH)?,
        to: net(DESTINATION, DESTINATION_LENGTH)?,
    }))
}

/// Tells that policies have changed, on a descriptor that can be waited for.
#[derive(Debug)]
pub struct Changes {
    socket: Socket,
}

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Changes {
    /// Subscribes in the calling thread's network namespace; list the policies
    /// afterwards, so that nothing falls between. `None` where the kernel has no IPsec.
    ///
    /// # Errors
    /// When the kernel does not let us.
    pub fn open() -> Result<Option<Self>, Error> {
        let Some(mut socket) = open()? else {
            return Ok(None);
        };
        let failed = |source| Error::Open {
            protocol: "IPsec notifications",
            source,
        };
        let inner = socket.inner();
        inner.set_non_blocking(true).map_err(failed)?;
        for group in [GROUP_POLICY, GROUP_EXPIRE] {
            inner.add_membership(group).map_err(failed)?;
        }
        Ok(Some(Self { socket }))
    }

    /// Reads all that has arrived: whether policies may have changed since.
    ///
    /// # Errors
    /// When the socket cannot be read.
    pub fn any(&mut self) -> io::Result<bool> {
        let mut any = false;
        loop {
            match self.socket.receive() {
                Ok(datagram) => {
                    let mut messages = Messages::new(datagram);
                    any |= messages.any(|message| message.message_type != XFRM_MSG_EXPIRE);
                }
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::AGAIN) => return Ok(any),
                    // Some were lost.
                    Some(Errno::NOBUFS | Errno::MSGSIZE) => any = true,
                    _ => return Err(error),
                },
            }
        }
    }
}

/// A socket to list policies with, in the calling thread's network namespace; `None`
/// where the kernel has no IPsec.
///
/// # Errors
/// When no socket can be had.
pub fn open() -> Result<Option<Socket>, Error> {
    match Socket::open(Protocol::Ipsec) {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if error.errno() == Some(Errno::PROTONOSUPPORT) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    /// As `ip xfrm policy` makes them: IPv4, from 10.1.0.0/16 to 10.2.0.0/24.
    fn policy(direction: u8, action: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; INFO_LENGTH];
        bytes[DESTINATION..][..4].copy_from_slice(&[10, 2, 0, 0]);
        bytes[SOURCE..][..4].copy_from_slice(&[10, 1, 0, 0]);
        bytes[FAMILY..][..2].copy_from_slice(&2u16.to_ne_bytes());
        (bytes[DESTINATION_LENGTH], bytes[SOURCE_LENGTH]) = (24, 16);
        (bytes[DIRECTION], bytes[ACTION]) = (direction, action);
        for (kind, value) in attributes {
            let length = u16::try_from(value.len() + 4).unwrap();
            bytes.extend([length.to_ne_bytes(), kind.to_ne_bytes()].concat());
            bytes.extend(*value);
        }
        bytes
    }

    const TEMPLATE: (u16, &[u8]) = (XFRMA_TMPL, &[0; 64]);

    #[rstest]
    #[case::out(&policy(1, 0, &[TEMPLATE]), Some("IPsec policy out from 10.1.0.0/16 to 10.2.0.0/24"))]
    #[case::forward(&policy(2, 0, &[TEMPLATE]), Some("IPsec policy fwd from 10.1.0.0/16 to 10.2.0.0/24"))]
    #[case::refusing(&policy(2, 1, &[]), Some("IPsec policy fwd from 10.1.0.0/16 to 10.2.0.0/24"))]
    #[case::to_the_node(&policy(0, 0, &[TEMPLATE]), None)]
    #[case::letting_be(&policy(1, 0, &[]), None)]
    #[case::of_an_interface(&policy(1, 0, &[TEMPLATE, (XFRMA_IF_ID, &[7, 0, 0, 0])]), None)]
    fn policies_that_do_something_about_forwarded_packets_count(
        #[case] bytes: &[u8],
        #[case] expected: Option<&str>,
    ) {
        let found = parse(bytes).unwrap().map(|policy| policy.to_string());
        assert_eq!(found.as_deref(), expected);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }
    }
}
