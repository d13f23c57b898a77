//! WireGuard devices: keys, port and peers.
//!
//! A device is made like every other link; this module sets it up and reads it
//! back. What a change does not name stays as it is, so that peers keep their
//! sessions. Long lists of peers, and of one peer's ranges, go out and come
//! back in several messages: nothing is cut off.
//!
//! Sources: `include/uapi/linux/wireguard.h` and its comments;
//! `drivers/net/wireguard/netlink.c`; wg(8) for the text form of keys.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use netlink_packet_core::{DecodeError, Emitable, NlasIterator, Parseable};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute,
    WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};
use rustix::io::Errno;

use crate::generic::{Description, Family, attributes_of};
use crate::netlink::{Error, Message, Protocol, Request, Socket};

const FAMILY: Description = Description {
    name: "wireguard",
    version: 1,
    feature: "WireGuard",
    module: "wireguard",
};
/// `WG_CMD_GET_DEVICE`.
const GET_DEVICE: u8 = 0;
/// `WG_CMD_SET_DEVICE`.
const SET_DEVICE: u8 = 1;

/// Bytes of a key (`WG_KEY_LEN`).
pub const KEY_LENGTH: usize = 32;
/// Bytes of peers in one message. The attribute that holds them ends at 64 KiB.
const MESSAGE: usize = 32 * 1024;
/// Ranges of a peer in one message, each at most 40 bytes.
const RANGES: usize = 256;

/// A device's or a peer's public key; its text form is base64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; KEY_LENGTH]);

impl fmt::Display for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PublicKey({self})")
    }
}

/// A text that is not a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a WireGuard key: 32 bytes in base64, 44 characters")]
pub struct ParseKeyError(String);

impl FromStr for PublicKey {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, ParseKeyError> {
        STANDARD
            .decode(text)
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| ParseKeyError(text.to_owned()))
    }
}

/// A device's private key. It has no text form, so that no log can hold it.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey([u8; KEY_LENGTH]);

impl PrivateKey {
    /// A new one, of the kernel's random numbers. Give it to a device and read
    /// the public key back from there.
    pub fn generate() -> std::io::Result<Self> {
        let mut bytes = [0; KEY_LENGTH];
        let mut filled = 0;
        while filled < KEY_LENGTH {
            filled += rustix::rand::getrandom(
                &mut bytes[filled..],
                rustix::rand::GetRandomFlags::empty(),
            )?;
        }
        Ok(Self::from_bytes(bytes))
    }

    /// A key kept elsewhere. Its bits are set as RFC 7748, section 5, asks, and
    /// as the kernel does too: a key read back from a device compares equal.
    pub fn from_bytes(mut bytes: [u8; KEY_LENGTH]) -> Self {
        bytes[0] &= 248;
        bytes[31] = (bytes[31] & 127) | 64;
        Self(bytes)
    }

    /// The key itself, to be kept in a file of mode 0600.
    pub fn as_bytes(&self) -> &[u8; KEY_LENGTH] {
        &self.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("PrivateKey(hidden)")
    }
}

/// Settings of a device; `None` leaves one as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// The private key. A new one ends all sessions.
    pub private_key: Option<PrivateKey>,
    /// The UDP port, of both families; 0 lets the kernel choose.
    pub port: Option<u16>,
    /// The packet mark of what the device sends, by which policy routing tells
    /// it from what is to be sent through the device; 0 for none.
    pub mark: Option<u32>,
}

/// What becomes of a peer's ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ranges {
    /// They are added. A range that another peer has moves over, in one step:
    /// no packet finds it without a peer.
    Add(Vec<IpNet>),
    /// They replace those the peer has. Packets to a range that stays may be
    /// dropped for the instant between.
    Replace(Vec<IpNet>),
}

/// A change of one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The peer is there with these settings, made where it was not.
    Set {
        /// Which peer.
        key: PublicKey,
        /// Where it is; `None` leaves what is there: its last address if it
        /// has moved.
        endpoint: Option<SocketAddr>,
        /// Seconds between packets that keep translators in between from
        /// forgetting the way, 0 for none; `None` leaves it.
        keepalive: Option<u16>,
        /// The ranges routed to it and accepted from it.
        ranges: Ranges,
    },
    /// Keys are agreed upon with the peer at once if there are none in force, though
    /// nothing is sent to it; nothing else of it changes. A no-op for a peer that is
    /// not there and on a device that is down.
    ///
    /// What asks for it is a keep-alive interval that was none: `set_peer` sends the
    /// first packet then. It is set back in the same message, which the kernel carries
    /// out as a whole whatever becomes of the process. A peer whose last initiation
    /// was less than `REKEY_TIMEOUT`, 5 seconds, ago gets no other.
    Handshake(PublicKey),
    /// The peer and its ranges are gone. It need not have been there.
    Remove(PublicKey),
}

/// A device as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Its private key, if it has one.
    pub private_key: Option<PrivateKey>,
    /// The public key that belongs to it.
    pub public_key: Option<PublicKey>,
    /// UDP port; 0 while it is down and none was set.
    pub port: u16,
    /// Mark of the packets it sends; 0 for none.
    pub mark: u32,
    /// Its peers, in the kernel's order.
    pub peers: Vec<Peer>,
}

/// A peer as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its public key.
    pub key: PublicKey,
    /// Where packets to it go: as it was set, or where it was heard from last.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keep-alive packets; 0 for none.
    pub keepalive: u16,
    /// The ranges routed to it and accepted from it.
    pub ranges: Vec<IpNet>,
    /// When keys were last agreed upon with it.
    pub last_handshake: Option<SystemTime>,
    /// Bytes received from it.
    pub received: u64,
    /// Bytes sent to it.
    pub sent: u64,
}

/// A way to the WireGuard devices of one network namespace.
#[derive(Debug)]
pub struct WireGuard {
    socket: Socket,
    family: Family,
}

impl WireGuard {
    /// Opens it in the calling thread's network namespace. A kernel without
    /// WireGuard is an [`Error::Missing`].
    pub fn open() -> Result<Self, Error> {
        let mut socket = Socket::open(Protocol::Generic)?;
        let family = Family::resolve(&mut socket, &FAMILY)?;
        Ok(Self { socket, family })
    }

    /// Reads a device; `None` when there is no link of that name. A link of
    /// another kind is refused with `EOPNOTSUPP`.
    pub fn device(&mut self, name: &str) -> Result<Option<Device>, Error> {
        let request = self.family.request(
            format!("read the WireGuard device {name}"),
            GET_DEVICE,
            0,
            &encoded(&[WireguardAttribute::IfName(name.to_owned())]),
        );
        let parts = match self.socket.dump(request, decode) {
            Ok(parts) => parts,
            Err(error) if error.errno() == Some(Errno::NODEV) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(parts.into_iter().reduce(joined))
    }

    /// Sets a device up.
    pub fn configure(&mut self, name: &str, settings: &Settings) -> Result<(), Error> {
        let mut attributes = vec![WireguardAttribute::IfName(name.to_owned())];
        if let Some(key) = &settings.private_key {
            attributes.push(WireguardAttribute::PrivateKey(key.0));
        }
        if let Some(port) = settings.port {
            attributes.push(WireguardAttribute::ListenPort(port));
        }
        if let Some(mark) = settings.mark {
            attributes.push(WireguardAttribute::Fwmark(mark));
        }
        self.socket.execute(&self.family.request(
            format!("set up the WireGuard device {name}"),
            SET_DEVICE,
            0,
            &encoded(&attributes),
        ))
    }

    /// Changes peers of a device, in order. A failure may leave the changes
    /// before it in force.
    pub fn change(&mut self, name: &str, changes: &[Change]) -> Result<(), Error> {
        self.socket
            .execute_all(&requests(self.family, name, changes))
    }
}

/// The requests for a list of changes, each within the bounds of a message.
fn requests(family: Family, name: &str, changes: &[Change]) -> Vec<Request> {
    let mut requests = Vec::new();
    let mut peers: Vec<WireguardPeer> = Vec::new();
    let mut send = |peers: &mut Vec<WireguardPeer>| {
        if !peers.is_empty() {
            requests.push(family.request(
                format!(
                    "change {} peers of the WireGuard device {name}",
                    peers.len()
                ),
                SET_DEVICE,
                0,
                &encoded(&[
                    WireguardAttribute::IfName(name.to_owned()),
                    WireguardAttribute::Peers(std::mem::take(peers)),
                ]),
            ));
        }
    };
    let mut length = 0;
    for together in changes.iter().flat_map(encode) {
        let more: usize = together.iter().map(Emitable::buffer_len).sum();
        if length + more > MESSAGE {
            send(&mut peers);
            length = 0;
        }
        length += more;
        peers.extend(together);
    }
    send(&mut peers);
    requests
}

/// One change as one or, for many ranges, several groups of attributes. What is in a
/// group belongs into one message.
fn encode(change: &Change) -> Vec<Vec<WireguardPeer>> {
    let (key, endpoint, keepalive, ranges) = match change {
        Change::Remove(key) => {
            return vec![vec![WireguardPeer(vec![
                WireguardPeerAttribute::PublicKey(key.0),
                WireguardPeerAttribute::Flags(WireguardPeerFlags::RemoveMe),
            ])]];
        }
        Change::Handshake(key) => {
            let keepalive = |seconds| {
                WireguardPeer(vec![
                    WireguardPeerAttribute::PublicKey(key.0),
                    WireguardPeerAttribute::Flags(WireguardPeerFlags::UpdateOnly),
                    WireguardPeerAttribute::PersistentKeepalive(seconds),
                ])
            };
            return vec![vec![keepalive(u16::MAX), keepalive(0)]];
        }
        Change::Set {
            key,
            endpoint,
            keepalive,
            ranges,
        } => (key, endpoint, keepalive, ranges),
    };
    let mut attributes = vec![WireguardPeerAttribute::PublicKey(key.0)];
    let ranges = match ranges {
        Ranges::Add(ranges) => ranges,
        Ranges::Replace(ranges) => {
            attributes.push(WireguardPeerAttribute::Flags(
                WireguardPeerFlags::ReplaceAllowedIps,
            ));
            ranges
        }
    };
    attributes.extend(endpoint.map(WireguardPeerAttribute::Endpoint));
    attributes.extend(keepalive.map(WireguardPeerAttribute::PersistentKeepalive));
    let mut peers = Vec::new();
    for part in ranges.chunks(RANGES) {
        attributes.push(WireguardPeerAttribute::AllowedIps(
            part.iter().map(allowed_ip).collect(),
        ));
        // What follows adds to the peer that is there then.
        let rest = vec![WireguardPeerAttribute::PublicKey(key.0)];
        peers.push(vec![WireguardPeer(std::mem::replace(
            &mut attributes,
            rest,
        ))]);
    }
    if peers.is_empty() {
        peers.push(vec![WireguardPeer(attributes)]);
    }
    peers
}

fn allowed_ip(range: &IpNet) -> WireguardAllowedIp {
    WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Family(match range {
            IpNet::V4(_) => WireguardAddressFamily::Ipv4,
            IpNet::V6(_) => WireguardAddressFamily::Ipv6,
        }),
        WireguardAllowedIpAttr::IpAddr(range.addr()),
        WireguardAllowedIpAttr::Cidr(range.prefix_len()),
    ])
}

fn encoded(attributes: &[WireguardAttribute]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

/// One message of a device's description.
fn decode(message: Message<'_>) -> Result<Option<Device>, DecodeError> {
    let mut device = Device {
        index: 0,
        name: String::new(),
        private_key: None,
        public_key: None,
        port: 0,
        mark: 0,
        peers: Vec::new(),
    };
    for attribute in NlasIterator::new(attributes_of(message)) {
        match WireguardAttribute::parse(&attribute?)? {
            WireguardAttribute::IfIndex(index) => device.index = index,
            WireguardAttribute::IfName(name) => device.name = name,
            WireguardAttribute::PrivateKey(key) => device.private_key = Some(PrivateKey(key)),
            WireguardAttribute::PublicKey(key) => device.public_key = Some(PublicKey(key)),
            WireguardAttribute::ListenPort(port) => device.port = port,
            WireguardAttribute::Fwmark(mark) => device.mark = mark,
            WireguardAttribute::Peers(peers) => {
                for peer in peers {
                    add(&mut device.peers, decode_peer(peer)?);
                }
            }
            _ => {}
        }
    }
    Ok(Some(device))
}

fn decode_peer(peer: WireguardPeer) -> Result<Peer, DecodeError> {
    let mut found = Peer {
        key: PublicKey([0; KEY_LENGTH]),
        endpoint: None,
        keepalive: 0,
        ranges: Vec::new(),
        last_handshake: None,
        received: 0,
        sent: 0,
    };
    for attribute in peer.0 {
        match attribute {
            WireguardPeerAttribute::PublicKey(key) => found.key = PublicKey(key),
            WireguardPeerAttribute::Endpoint(endpoint) => found.endpoint = Some(endpoint),
            WireguardPeerAttribute::PersistentKeepalive(seconds) => found.keepalive = seconds,
            WireguardPeerAttribute::LastHandshake(time) => {
                let seconds = u64::try_from(time.seconds).unwrap_or(0);
                let nanoseconds = u32::try_from(time.nano_seconds).unwrap_or(0);
                // Zero stands for never; so does what no clock shows.
                found.last_handshake = Duration::from_secs(seconds)
                    .checked_add(Duration::from_nanos(nanoseconds.into()))
                    .filter(|since| !since.is_zero())
                    .and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since));
            }
            WireguardPeerAttribute::RxBytes(bytes) => found.received = bytes,
            WireguardPeerAttribute::TxBytes(bytes) => found.sent = bytes,
            WireguardPeerAttribute::AllowedIps(ranges) => {
                for range in ranges {
                    found.ranges.push(decode_range(&range)?);
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

fn decode_range(range: &WireguardAllowedIp) -> Result<IpNet, DecodeError> {
    let address = range.iter().find_map(|attribute| match attribute {
        WireguardAllowedIpAttr::IpAddr(address) => Some(*address),
        _ => None,
    });
    let length = range.iter().find_map(|attribute| match attribute {
        WireguardAllowedIpAttr::Cidr(length) => Some(*length),
        _ => None,
    });
    address
        .zip(length)
        .and_then(|(address, length)| IpNet::new(address, length).ok())
        .ok_or_else(|| DecodeError::from("a range without address or length"))
}

/// Two messages of one device as one. The second may go on with the ranges of
/// the peer the first ended with.
fn joined(mut first: Device, second: Device) -> Device {
    for peer in second.peers {
        add(&mut first.peers, peer);
    }
    first
}

fn add(peers: &mut Vec<Peer>, peer: Peer) {
    match peers.last_mut() {
        Some(last) if last.key == peer.key => last.ranges.extend(peer.ranges),
        _ => peers.push(peer),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::netlink::Messages;

    fn message<'a>(payload: &'a [u8]) -> Message<'a> {
        Message {
            message_type: 30,
            flags: 0,
            sequence: 1,
            port: 0,
            payload,
        }
    }

    /// What the kernel would read in the requests: each with its devices' peers.
    fn sent(changes: &[Change]) -> Vec<Device> {
        requests(Family::numbered(30), "pwwg0", changes)
            .iter()
            .map(|request| {
                let bytes = request.encoded();
                assert!(bytes.len() < 48 * 1024, "{} bytes", bytes.len());
                let message = Messages::new(&bytes).next().unwrap();
                assert_eq!(message.payload[..4], [SET_DEVICE, 1, 0, 0]);
                decode(message).unwrap().unwrap()
            })
            .collect()
    }

    fn key(number: u32) -> PublicKey {
        let mut bytes = [0; KEY_LENGTH];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        PublicKey(bytes)
    }

    #[test]
    fn the_bytes_of_a_change_are_those_of_the_kernels_header() {
        let requests = requests(
            Family::numbered(0x1e),
            "wg0",
            &[Change::Set {
                key: PublicKey([0xaa; 32]),
                endpoint: Some("192.0.2.7:51820".parse().unwrap()),
                keepalive: Some(25),
                ranges: Ranges::Replace(vec!["10.200.3.0/24".parse().unwrap()]),
            }],
        );
        let mut expected: Vec<u8> = Vec::new();
        expected.extend([1, 1, 0, 0]); // WG_CMD_SET_DEVICE, version
        expected.extend([8, 0, 2, 0]); // WGDEVICE_A_IFNAME
        expected.extend(b"wg0\0");
        expected.extend([112, 0, 8, 0x80]); // WGDEVICE_A_PEERS, nested
        expected.extend([108, 0, 0, 0x80]); // the first peer, nested
        expected.extend([36, 0, 1, 0]); // WGPEER_A_PUBLIC_KEY
        expected.extend([0xaa; 32]);
        expected.extend([8, 0, 3, 0, 2, 0, 0, 0]); // WGPEER_A_FLAGS: replace ranges
        expected.extend([20, 0, 4, 0, 2, 0, 0xca, 0x6c, 192, 0, 2, 7]); // sockaddr_in
        expected.extend([0; 8]);
        expected.extend([6, 0, 5, 0, 25, 0, 0, 0]); // keep-alive, padded
        expected.extend([32, 0, 9, 0x80]); // WGPEER_A_ALLOWEDIPS
        expected.extend([28, 0, 0, 0x80]);
        expected.extend([6, 0, 1, 0, 2, 0, 0, 0]); // AF_INET
        expected.extend([8, 0, 2, 0, 10, 200, 3, 0]);
        expected.extend([5, 0, 3, 0, 24, 0, 0, 0]);
        let bytes = requests[0].encoded();
        let found = Messages::new(&bytes).next().unwrap();
        assert_eq!(requests.len(), 1);
        assert_eq!(found.message_type, 0x1e);
        assert_eq!(found.payload, expected);
    }

    #[test]
    fn thousands_of_peers_are_split_and_none_is_lost() {
        let changes: Vec<Change> = (0..5000)
            .map(|number| Change::Set {
                key: key(number),
                endpoint: Some((Ipv4Addr::from(number), 51820).into()),
                keepalive: None,
                ranges: Ranges::Add(vec!["fd00::/64".parse().unwrap()]),
            })
            .collect();
        let devices = sent(&changes);
        assert!(devices.len() > 1);
        let keys: Vec<PublicKey> = devices
            .iter()
            .flat_map(|device| device.peers.iter().map(|peer| peer.key))
            .collect();
        assert_eq!(keys, (0..5000).map(key).collect::<Vec<_>>());
    }

    #[test]
    fn a_handshake_is_asked_for_and_the_interval_set_back_in_one_message_however_many_there_are() {
        let changes: Vec<Change> = (0..5000).map(key).map(Change::Handshake).collect();
        let requests = requests(Family::numbered(30), "pwwg0", &changes);
        assert!(requests.len() > 1);
        let mut asked = Vec::new();
        for request in requests {
            let bytes = request.encoded();
            let attributes = attributes_of(Messages::new(&bytes).next().unwrap());
            let mut peers = Vec::new();
            for attribute in NlasIterator::new(attributes) {
                if let WireguardAttribute::Peers(more) =
                    WireguardAttribute::parse(&attribute.unwrap()).unwrap()
                {
                    peers.extend(more.into_iter().map(|peer| decode_peer(peer).unwrap()));
                }
            }
            for pair in peers.chunks(2) {
                let [on, off] = pair else {
                    panic!("cut in two: {pair:?}")
                };
                assert_eq!((on.key, off.keepalive), (off.key, 0));
                assert!(on.keepalive > 0 && on.ranges.is_empty() && on.endpoint.is_none());
                asked.push(on.key);
            }
        }
        assert_eq!(asked, (0..5000).map(key).collect::<Vec<_>>());
        // WGPEER_F_UPDATE_ONLY: one that is gone does not come back by it.
        let only = WireguardPeerAttribute::Flags(WireguardPeerFlags::UpdateOnly);
        let parts = encode(&changes[0]);
        assert!(parts[0].iter().all(|peer| peer.0.contains(&only)));
    }

    #[test]
    fn thousands_of_ranges_of_one_peer_are_split_and_replace_only_what_was_there_before() {
        let ranges: Vec<IpNet> = (0..5000u32)
            .map(|number| IpNet::new(Ipv4Addr::from(0x0a00_0000 + number).into(), 32).unwrap())
            .collect();
        let change = Change::Set {
            key: key(1),
            endpoint: None,
            keepalive: None,
            ranges: Ranges::Replace(ranges.clone()),
        };
        let parts = encode(&change);
        for (at, part) in parts.iter().enumerate() {
            let replaces = part[0]
                .iter()
                .any(|a| matches!(a, WireguardPeerAttribute::Flags(_)));
            assert_eq!(replaces, at == 0, "part {at}");
        }
        let device = sent(&[change]).into_iter().reduce(joined).unwrap();
        assert_eq!(device.peers.len(), 1);
        assert_eq!(device.peers[0].ranges, ranges);
    }

    #[test]
    fn keys_are_read_and_written_as_wg_does_and_private_ones_never_shown() {
        let text = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";
        let key: PublicKey = text.parse().unwrap();
        assert_eq!(key.to_string(), text);
        for wrong in [
            "",
            "HIgo",
            &text[1..],
            "!Igo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=",
        ] {
            assert!(wrong.parse::<PublicKey>().is_err(), "{wrong}");
        }
        let private = PrivateKey::generate().unwrap();
        assert_eq!(format!("{private:?}"), "PrivateKey(hidden)");
        assert_ne!(private, PrivateKey::generate().unwrap());
        assert_eq!(PrivateKey::from_bytes(*private.as_bytes()), private);
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(message(&bytes));
        }

        #[test]
        fn no_damaged_answer_makes_the_reader_panic(at in 0usize..120, byte in any::<u8>()) {
            let mut bytes = requests(Family::numbered(1), "wg0", &[Change::Set {
                key: key(7),
                endpoint: Some("[2001:db8::1]:1".parse().unwrap()),
                keepalive: Some(1),
                ranges: Ranges::Add(vec!["fd00::/48".parse().unwrap()]),
            }])[0].encoded();
            let at = 16 + at.min(bytes.len() - 17);
            bytes[at] = byte;
            let _ = decode(message(&bytes[16..]));
        }
    }
}
