//! Packets made by hand, as somebody would who means harm.

use std::io::Read as _;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6, UdpSocket};

use linux::link::MacAddress;
use linux::namespace::NetworkNamespace;
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto};
use socket2::{Domain, Protocol, Socket, Type};

use super::{Pod, ip};

/// What a pod has received, by the kernel's own counters.
pub fn received(pod: &Pod, file: &str, counter: &str) -> u64 {
    let file = format!("/proc/thread-self/net/{file}");
    let text = pod.namespace.run(|| std::fs::read_to_string(file).unwrap());
    let text = text.unwrap();
    // Either "name value", or a line of names above a line of values.
    let lines: Vec<Vec<_>> = text
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    for (at, line) in lines.iter().enumerate() {
        if let Some(place) = line.iter().position(|word| *word == counter) {
            let value = match line.len() {
                2 => line[1],
                _ => lines[at + 1][place],
            };
            return value.parse().unwrap();
        }
    }
    panic!("no {counter} in {text}")
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let sum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
    sum.to_be_bytes()
}

/// An IPv4 packet (RFC 791). `fragment` is its offset, in units of 8 bytes, with the
/// flag that more follow.
pub fn ipv4(protocol: u8, from: Ipv4Addr, to: Ipv4Addr, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(20 + payload.len()).unwrap();
    let mut bytes = vec![0x45, 0, 0, length, 0, 7];
    bytes.extend(fragment.to_be_bytes());
    bytes.extend([64, protocol, 0, 0]);
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    let sum = checksum(&bytes);
    bytes[10..12].copy_from_slice(&sum);
    bytes.extend(payload);
    bytes
}

/// That more fragments follow (RFC 791, 3.1).
pub const MORE: u16 = 0x2000;

/// An IPv4 packet of ICMP.
pub fn icmp(from: Ipv4Addr, to: Ipv4Addr, message: &[u8]) -> Vec<u8> {
    ipv4(1, from, to, 0, message)
}

/// An echo request of ICMP (RFC 792).
pub fn echo() -> Vec<u8> {
    let mut message = vec![8, 0, 0, 0, 0, 7, 0, 1];
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum);
    message
}

/// An ICMP redirect (RFC 792) that tells a host to send what is for `destination` to
/// `router`.
pub fn redirect(host: Ipv4Addr, destination: Ipv4Addr, router: Ipv4Addr) -> Vec<u8> {
    // About an echo reply, which the kernel sends by itself: no socket is asked.
    let mut message = vec![5, 1, 0, 0];
    message.extend(router.octets());
    message.extend(icmp(host, destination, &[0; 8]));
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum);
    message
}

/// An IPv6 packet (RFC 8200) of ICMPv6, which comes from the link itself. `headers`
/// come before the message: the kind of each and what it holds but for the next one's.
pub fn icmpv6(from: Ipv6Addr, to: Ipv6Addr, headers: &[(u8, [u8; 7])], message: &[u8]) -> Vec<u8> {
    const ICMPV6: u8 = 58;
    let mut message = message.to_vec();
    let mut pseudo = [from.octets(), to.octets()].concat();
    pseudo.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    pseudo.extend([0, 0, 0, ICMPV6]);
    pseudo.extend(&message);
    let sum = checksum(&pseudo);
    message[2..4].copy_from_slice(&sum);
    let kinds: Vec<_> = headers.iter().map(|h| h.0).chain([ICMPV6]).collect();
    let length = u16::try_from(8 * headers.len() + message.len()).unwrap();
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend(length.to_be_bytes());
    bytes.extend([kinds[0], 255]);
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    for ((_, rest), next) in headers.iter().zip(&kinds[1..]) {
        bytes.push(*next);
        bytes.extend(rest);
    }
    bytes.extend(message);
    bytes
}

/// A router advertisement (RFC 4861, 4.2 and 4.6.2), without its checksum: a router for
/// half an hour, and a prefix to take an address of.
pub fn router_advertisement(prefix: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    message.extend([3, 4, 64, 0xc0, 0, 0, 14, 16, 0, 0, 14, 16, 0, 0, 0, 0]);
    message.extend(prefix.octets());
    message
}

/// A redirect of ICMPv6 (RFC 4861, 4.5), without its checksum.
pub fn nd_redirect(destination: Ipv6Addr, router: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![137, 0, 0, 0, 0, 0, 0, 0];
    message.extend(router.octets());
    message.extend(destination.octets());
    message
}

/// Sends packets, whole as they are, from a namespace: IPv4 by its routes.
pub fn send4(from: &NetworkNamespace, to: Ipv4Addr, packets: &[Vec<u8>]) {
    from.run(|| {
        let socket =
            rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW)).unwrap();
        let to = SocketAddrV4::new(to, 0);
        for packet in packets {
            rustix::net::sendto(&socket, packet, SendFlags::empty(), &to).unwrap();
        }
    })
    .unwrap();
}

/// The same of IPv6, by a device.
pub fn send6(from: &NetworkNamespace, device: &str, to: Ipv6Addr, packets: &[Vec<u8>]) {
    from.run(|| {
        let socket =
            rustix::net::socket(AddressFamily::INET6, SocketType::RAW, Some(ipproto::RAW)).unwrap();
        let mut route = linux::netlink::Socket::open_route().unwrap();
        let link = linux::link::get(&mut route, device).unwrap().unwrap();
        let to = SocketAddrV6::new(to, 0, 0, link.index);
        for packet in packets {
            rustix::net::sendto(&socket, packet, SendFlags::empty(), &to).unwrap();
        }
    })
    .unwrap();
}

/// `ETH_P_*`.
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ALL: u16 = 3;

/// A frame with an IPv4 or IPv6 packet and tags of these kinds, the outermost first,
/// which name no VLAN (IEEE 802.1Q, 9.6).
pub fn frame(from: MacAddress, to: MacAddress, tags: &[u16], packet: &[u8]) -> Vec<u8> {
    let mut bytes = [to.0, from.0].concat();
    for tag in tags {
        bytes.extend(tag.to_be_bytes());
        bytes.extend([0, 0]);
    }
    let protocol = if packet[0] >> 4 == 6 { IPV6 } else { IPV4 };
    bytes.extend(protocol.to_be_bytes());
    bytes.extend(packet);
    bytes
}

/// The hardware address of a pod.
pub fn mac(pod: &Pod) -> MacAddress {
    let shown = ip(&pod.namespace, "link show eth0");
    shown[0]["address"].as_str().unwrap().parse().unwrap()
}

/// Sends frames by a pod's interface.
pub fn send_frames(from: &Pod, frames: &[Vec<u8>]) {
    let own = mac(from);
    let open = || {
        let socket = Socket::new(
            Domain::PACKET,
            Type::RAW,
            Some(Protocol::from(i32::from(ALL.to_be()))),
        );
        // Whatever it is, the interface sends something.
        let other = UdpSocket::bind("0.0.0.0:0").unwrap();
        other.send_to(b"here", "198.51.100.1:9").unwrap();
        socket.unwrap()
    };
    let socket = from.namespace.run(open).unwrap();
    // The address of a frame that the interface has sent leads to the interface.
    let interface = loop {
        let address = socket.peek_sender().unwrap();
        let mut frame = [0; 2048];
        let length = (&socket).read(&mut frame).unwrap();
        if frame[..length].get(6..12) == Some(&own.0) {
            break address;
        }
    };
    for frame in frames {
        socket.send_to(frame, &interface).unwrap();
    }
}
