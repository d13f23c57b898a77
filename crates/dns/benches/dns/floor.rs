//! The floor: a program that takes a question, marks it as an answer and sends it
//! back, by two system calls.

use std::net::{SocketAddr, UdpSocket};

/// Serves until it is stopped.
pub(crate) fn serve(told: impl FnOnce(SocketAddr)) -> anyhow::Result<()> {
    let socket = UdpSocket::bind(("127.0.0.1", 0))?;
    told(socket.local_addr()?);
    let mut buffer = [0; 4096];
    std::thread::spawn(move || {
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            buffer[2] |= 0x80;
            let _ = socket.send_to(&buffer[..length], client);
        }
    });
    std::io::stdin().lines().for_each(drop);
    Ok(())
}
