//! Settings of devices that route netlink does not have.
//!
//! Source: `include/uapi/linux/ethtool.h`.

use std::ffi::c_void;
use std::io;
use std::mem::size_of;
use std::os::fd::AsFd;

use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};

use crate::link::NAME_LENGTH;

/// `SIOCETHTOOL` (linux/sockios.h).
const SIOCETHTOOL: Opcode = 0x8946;
/// `ETHTOOL_GTXCSUM`.
const GET_TX_CHECKSUM: u32 = 0x16;
/// `ETHTOOL_STXCSUM`.
const SET_TX_CHECKSUM: u32 = 0x17;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// `struct ifreq`, whose union is 24 bytes long on 64-bit machines.
#[repr(C)]
struct Request {
    name: [u8; NAME_LENGTH + 1],
    value: *mut Value,
    rest: [u8; 24 - size_of::<usize>()],
}

struct Ethtool(Request);

#[allow(unsafe_code)]
// SAFETY: SIOCETHTOOL takes an ifreq whose pointer leads to the ethtool_value
// of the command; the caller keeps it alive and alone during the call.
unsafe impl Ioctl for Ethtool {
    type Output = ();
    const IS_MUTATING: bool = true;
    fn opcode(&self) -> Opcode {
        SIOCETHTOOL
    }
    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut self.0).cast()
    }
    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

/// Whether the interface `name` leaves checksums of what it sends to the device
/// below it (transmit checksum offload).
///
/// # Errors
/// When there is no such interface, or it has no such setting.
pub fn tx_checksum_offload(name: &str) -> io::Result<bool> {
    ask(name, GET_TX_CHECKSUM, 0).map(|data| data != 0)
}

/// Turns transmit checksum offload of the interface `name` on or off. Off, the
/// kernel computes the checksum before the packet is handed to the device.
///
/// # Errors
/// When there is no such interface, or it has no such setting.
pub fn set_tx_checksum_offload(name: &str, on: bool) -> io::Result<()> {
    ask(name, SET_TX_CHECKSUM, u32::from(on)).map(|_| ())
}

fn ask(name: &str, command: u32, data: u32) -> io::Result<u32> {
    let mut bytes = [0; NAME_LENGTH + 1];
    match bytes.get_mut(..name.len()) {
        Some(place) if name.len() <= NAME_LENGTH => place.copy_from_slice(name.as_bytes()),
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    }
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    let mut value = Value { command, data };
    let request = Ethtool(Request {
        name: bytes,
        value: &raw mut value,
        rest: [0; 24 - size_of::<usize>()],
    });
    #[allow(unsafe_code)]
    // SAFETY: `request` points to `value`, which outlives the call and is not
    // touched by anybody else meanwhile.
    unsafe {
        rustix::ioctl::ioctl(socket.as_fd(), request)?;
    }
    Ok(value.data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::{self, Bridge};
    use crate::namespace::NetworkNamespace;

    #[test]
    fn checksum_offload_is_a_setting_of_the_one_device() {
        let namespace = NetworkNamespace::create().unwrap();
        let mut socket = namespace.route_socket().unwrap();
        for name in ["one", "other"] {
            let bridge = Bridge {
                name,
                ..Bridge::default()
            };
            socket.execute(&link::add_bridge(&bridge)).unwrap();
        }
        namespace
            .run(|| {
                assert!(tx_checksum_offload("one").unwrap());
                set_tx_checksum_offload("one", false).unwrap();
                assert!(!tx_checksum_offload("one").unwrap());
                assert!(tx_checksum_offload("other").unwrap());
                set_tx_checksum_offload("one", true).unwrap();
                assert!(tx_checksum_offload("one").unwrap());
                assert!(tx_checksum_offload("nobody").is_err());
                assert!(tx_checksum_offload("a-name-much-too-long").is_err());
            })
            .unwrap();
    }
}
