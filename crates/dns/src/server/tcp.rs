//! The event loop: TCP (RFC 7766), and what UDP's threads cannot answer alone.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, mpsc};

use super::{Begun, Job, Shared, udp};
use crate::metrics::Transport;

/// Connections at once; more wait to be accepted.
const CONNECTIONS: usize = 1024;
/// Questions of one connection under way at once; more are not read yet.
const PIPELINED: usize = 64;
/// A connection that is quiet for so long is closed (RFC 7766 6.2.3).
const IDLE: Duration = Duration::from_secs(10);
/// Connections the kernel keeps for us to accept.
const BACKLOG: i32 = 256;

/// A question that came by UDP.
pub(super) struct UdpJob {
    pub(super) job: Box<Job>,
    pub(super) socket: Arc<UdpSocket>,
}

/// A listener at `address`.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    udp::prepare(&socket, address)?;
    // A server that starts again takes the place of connections that linger.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Serves until it is dropped.
pub(super) async fn serve(
    shared: Arc<Shared>,
    listeners: Vec<TcpListener>,
    mut jobs: mpsc::Receiver<UdpJob>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    for listener in listeners {
        match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => {
                tokio::spawn(accept(shared.clone(), listener, places.clone()));
            }
            Err(error) => tracing::error!("serving DNS by TCP: {error}"),
        }
    }
    let forwarder = shared.forwarder.clone();
    tokio::spawn(async move { forwarder.probe_for_loops().await });
    while let Some(UdpJob { job, socket }) = jobs.recv().await {
        let shared = shared.clone();
        tokio::spawn(async move {
            let client = job.client;
            let reply = shared.finish(&job).await;
            udp::send(&socket, &reply, client);
        });
    }
    // No thread is left to send any: only TCP, until this is dropped.
    std::future::pending::<()>().await;
}

async fn accept(shared: Arc<Shared>, listener: tokio::net::TcpListener, places: Arc<Semaphore>) {
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, client)) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    connection(&shared, stream, client).await;
                    drop(place);
                });
            }
            // The connection was given up before it was accepted, or there are too
            // many open files: others end by themselves.
            Err(error) => {
                tracing::debug!("accepting a DNS connection: {error}");
                drop(place);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

/// Answers one connection; answers go out as they are ready (RFC 7766 6.2.1.1).
async fn connection(shared: &Arc<Shared>, stream: TcpStream, client: SocketAddr) {
    let (reader, writer) = stream.into_split();
    let (replies, outbox) = mpsc::channel(PIPELINED);
    let read = read(shared, reader, client, replies);
    let write = write(writer, outbox);
    // Both end when the other does: the reader drops its end of the channel, the
    // writer its own.
    tokio::join!(read, write);
}

async fn read(
    shared: &Arc<Shared>,
    reader: OwnedReadHalf,
    client: SocketAddr,
    replies: mpsc::Sender<Vec<u8>>,
) {
    let mut reader = BufReader::new(reader);
    let mut message = Vec::new();
    loop {
        // Waits while too many answers are under way.
        let Ok(place) = replies.clone().reserve_owned().await else {
            return;
        };
        let next = async {
            let length = reader.read_u16().await?;
            message.resize(usize::from(length), 0);
            reader.read_exact(&mut message).await
        };
        match tokio::time::timeout(IDLE, next).await {
            Ok(Ok(_)) => {}
            // Idle, closed, or broken off in the middle.
            Ok(Err(_)) | Err(_) => return,
        }
        let since = Instant::now();
        if !shared.admits(client, since) {
            return;
        }
        match shared.begin(&message, client, Transport::Tcp, since) {
            Begun::Silence => return,
            Begun::Reply(reply, _) => {
                place.send(reply);
            }
            Begun::Ask(job) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    place.send(shared.finish(&job).await);
                });
            }
        }
    }
}

async fn write(mut writer: OwnedWriteHalf, mut outbox: mpsc::Receiver<Vec<u8>>) {
    while let Some(reply) = outbox.recv().await {
        let Ok(length) = u16::try_from(reply.len()) else {
            continue;
        };
        // Length and message in one segment (RFC 7766 8).
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend_from_slice(&reply);
        match tokio::time::timeout(IDLE, writer.write_all(&framed)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}
