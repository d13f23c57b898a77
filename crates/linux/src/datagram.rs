//! Many datagrams by one system call: `recvmmsg(2)` and `sendmmsg(2)`.
//!
//! A server whose answers cost less than a system call spends its time on
//! them; taking what has gathered in one call and answering it in another
//! leaves two calls for dozens of questions.

use std::io;
use std::mem::size_of;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// Datagrams of one call at most.
const MOST: usize = 64;

/// Where a datagram came from, and where its answer goes: an address of IPv4 or
/// IPv6 as the kernel writes it.
#[derive(Clone, Copy)]
pub struct Peer {
    /// Long enough for both families; a `sockaddr_in` stands at its beginning.
    address: libc::sockaddr_in6,
    length: libc::socklen_t,
}

impl Peer {
    /// No address yet.
    const NONE: Self = Self {
        address: libc::sockaddr_in6 {
            sin6_family: 0,
            sin6_port: 0,
            sin6_flowinfo: 0,
            sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
            sin6_scope_id: 0,
        },
        length: size_of::<libc::sockaddr_in6>() as libc::socklen_t,
    };

    /// The address; `None` of a family that is neither.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        let raw = &self.address;
        let port = u16::from_be(raw.sin6_port);
        match i32::from(raw.sin6_family) {
            // The address follows the port (struct sockaddr_in), where an IPv6
            // address has its flow label.
            libc::AF_INET => {
                let octets = raw.sin6_flowinfo.to_ne_bytes();
                Some(SocketAddrV4::new(Ipv4Addr::from(octets), port).into())
            }
            libc::AF_INET6 => {
                let address = Ipv6Addr::from(raw.sin6_addr.s6_addr);
                let (flow, scope) = (raw.sin6_flowinfo, raw.sin6_scope_id);
                Some(SocketAddrV6::new(address, port, flow, scope).into())
            }
            _ => None,
        }
    }
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.address().fmt(f)
    }
}

/// Room for datagrams that came.
#[derive(Debug)]
pub struct Inbox {
    bytes: Box<[u8]>,
    size: usize,
    peers: [Peer; MOST],
    lengths: [usize; MOST],
}

impl Inbox {
    /// Room for datagrams of at most `size` bytes; longer ones are cut.
    #[must_use]
    pub fn new(size: usize) -> Self {
        Self {
            bytes: vec![0; size * MOST].into(),
            size,
            peers: [Peer::NONE; MOST],
            lengths: [0; MOST],
        }
    }

    /// How many one call takes at most.
    #[must_use]
    pub const fn room(&self) -> usize {
        MOST
    }

    /// Takes the datagrams a socket holds, without waiting for any. They take
    /// the place of those taken before.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where there is none; else what the socket
    /// reports, such as an ICMP error of a datagram sent before.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: all-zero headers are valid: null pointers with lengths of zero.
        #[allow(unsafe_code)]
        let (mut vectors, mut headers): ([libc::iovec; MOST], [libc::mmsghdr; MOST]) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let buffers = self.bytes.chunks_exact_mut(self.size);
        for (((buffer, peer), vector), header) in buffers
            .zip(&mut self.peers)
            .zip(&mut vectors)
            .zip(&mut headers)
        {
            vector.iov_base = buffer.as_mut_ptr().cast();
            vector.iov_len = buffer.len();
            header.msg_hdr.msg_name = ptr::from_mut(&mut peer.address).cast();
            header.msg_hdr.msg_namelen = Peer::NONE.length;
            header.msg_hdr.msg_iov = ptr::from_mut(vector);
            header.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: every header points to an address of the length it says and to
        // one vector, and that to a buffer of the length it says; all of them are
        // borrowed mutably from `self` or local, and live until the call returns.
        #[allow(unsafe_code)]
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                MOST as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for (index, header) in headers.iter().take(count).enumerate() {
            self.lengths[index] = usize::try_from(header.msg_len)
                .unwrap_or(usize::MAX)
                .min(self.size);
            self.peers[index].length = header.msg_hdr.msg_namelen;
        }
        Ok(count)
    }

    /// The datagram at `index` of those taken last.
    ///
    /// # Panics
    /// When there is no room for so many.
    #[must_use]
    pub fn get(&self, index: usize) -> (&[u8], &Peer) {
        let start = index * self.size;
        (
            &self.bytes[start..start + self.lengths[index]],
            &self.peers[index],
        )
    }
}

/// Datagrams to be sent.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    datagrams: Vec<(Range<usize>, Peer)>,
}

impl Outbox {
    /// Adds what `write` appends, for `peer`. Nothing is added when it says
    /// `None`.
    pub fn add<T>(
        &mut self,
        peer: &Peer,
        write: impl FnOnce(&mut Vec<u8>) -> Option<T>,
    ) -> Option<T> {
        let start = self.bytes.len();
        let written = write(&mut self.bytes);
        if written.is_some() {
            self.datagrams.push((start..self.bytes.len(), *peer));
        } else {
            self.bytes.truncate(start);
        }
        written
    }

    /// Sends all there are, and is empty then. One that cannot be sent is lost,
    /// as datagrams are; `lost` is told why.
    pub fn send(&mut self, socket: BorrowedFd<'_>, mut lost: impl FnMut(&Peer, io::Error)) {
        let mut rest = self.datagrams.as_slice();
        while !rest.is_empty() {
            match self.send_some(socket, rest) {
                Ok(sent) => rest = &rest[sent.min(rest.len())..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    lost(&rest[0].1, error);
                    rest = &rest[1..];
                }
            }
        }
        self.datagrams.clear();
        self.bytes.clear();
    }

    fn send_some(
        &self,
        socket: BorrowedFd<'_>,
        datagrams: &[(Range<usize>, Peer)],
    ) -> io::Result<usize> {
        // SAFETY: all-zero headers are valid: null pointers with lengths of zero.
        #[allow(unsafe_code)]
        let (mut vectors, mut headers): ([libc::iovec; MOST], [libc::mmsghdr; MOST]) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let count = datagrams.len().min(MOST);
        for (((range, peer), vector), header) in
            datagrams.iter().zip(&mut vectors).zip(&mut headers)
        {
            vector.iov_base = self.bytes[range.clone()].as_ptr().cast_mut().cast();
            vector.iov_len = range.len();
            header.msg_hdr.msg_name = ptr::from_ref(&peer.address).cast_mut().cast();
            header.msg_hdr.msg_namelen = peer.length;
            header.msg_hdr.msg_iov = ptr::from_mut(vector);
            header.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: each of the first `count` headers points to an address of the
        // length it says and to one vector, and that into `self.bytes`; the kernel
        // only reads them, and they live until the call returns.
        #[allow(unsafe_code)]
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                count as libc::c_uint,
                libc::MSG_DONTWAIT as _,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;

    fn pair(address: &str) -> (UdpSocket, UdpSocket) {
        let socket = |to| {
            let socket = UdpSocket::bind(to).expect("loopback");
            socket
                .set_read_timeout(Some(Duration::from_secs(10)))
                .expect("settable");
            socket
        };
        (socket(address), socket(address))
    }

    #[test]
    fn many_come_by_one_call_and_go_back_to_whom_they_came_from() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (server, client) = pair(address);
            let mut inbox = Inbox::new(16);
            let none = inbox.receive(server.as_fd()).expect_err("nothing came yet");
            assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
            let to = server.local_addr().expect("bound");
            for n in 0..100u8 {
                client.send_to(&[n; 8], to).expect("sent");
            }
            client.send_to(&[0xff; 40], to).expect("sent");
            let mut seen = Vec::new();
            let mut outbox = Outbox::default();
            while seen.len() < 101 {
                let count = inbox.receive(server.as_fd()).expect("they came");
                assert!((1..=inbox.room()).contains(&count));
                for index in 0..count {
                    let (bytes, peer) = inbox.get(index);
                    assert_eq!(peer.address(), client.local_addr().ok());
                    seen.push(bytes.to_vec());
                    outbox.add(peer, |out| {
                        out.extend_from_slice(bytes);
                        (bytes[0] % 2 == 0).then_some(())
                    });
                }
            }
            assert_eq!(seen[7], [7; 8]);
            assert_eq!(seen[100], [0xff; 16], "cut to the room there is");
            outbox.send(server.as_fd(), |peer, error| panic!("{peer:?}: {error}"));
            let mut buffer = [0; 64];
            for n in (0..100).step_by(2) {
                let length = client.recv(&mut buffer).expect("answered");
                assert_eq!(buffer[..length], [n; 8]);
            }
            outbox.send(server.as_fd(), |_, _| panic!("it is empty"));
        }
    }

    #[test]
    fn one_that_cannot_be_sent_does_not_hold_up_the_others() {
        let (server, client) = pair("127.0.0.1:0");
        let (other, _) = pair("127.0.0.1:0");
        let to = server.local_addr().expect("bound");
        client.send_to(b"1", to).expect("sent");
        other.send_to(b"2", to).expect("sent");
        let mut inbox = Inbox::new(16);
        let mut outbox = Outbox::default();
        assert_eq!(inbox.receive(server.as_fd()).expect("they came"), 2);
        // Longer than any datagram can be.
        outbox.add(inbox.get(0).1, |out| {
            out.resize(70_000, 0);
            Some(())
        });
        outbox.add(inbox.get(1).1, |out| {
            out.push(9);
            Some(())
        });
        let mut lost = Vec::new();
        outbox.send(server.as_fd(), |peer, _| lost.push(peer.address()));
        assert_eq!(lost, [client.local_addr().ok()]);
        let mut buffer = [0; 8];
        assert_eq!(other.recv(&mut buffer).expect("answered"), 1);
    }
}
