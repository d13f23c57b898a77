//! TCP from one network namespace to another, by threads of this process that
//! all run on one core.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use linux::namespace::NetworkNamespace;

/// Streams of the parallel measurement.
const STREAMS: usize = 8;
/// How long packets pass before it counts.
const WARM: Duration = Duration::from_millis(20);
/// How long one measurement counts. Short, so that all ways come in turn many
/// times: what slows the machine down for a while slows all of them.
const WINDOW: Duration = Duration::from_millis(50);
/// For many streams it all takes longer by this: each of their threads has to have
/// had the core several times.
const LONGER: u32 = 3;
/// How long one operation may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Bits a second and requests a second of one round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) one_stream: f64,
    pub(crate) eight_streams: f64,
    pub(crate) requests: f64,
}

/// Keeps the calling thread, and those it starts, on one core: what a packet
/// costs then shows as less throughput, and no wake-up of another core, whose
/// time differs tenfold from run to run, is part of it.
pub(crate) fn stay_on_one_core() -> anyhow::Result<()> {
    let allowed = rustix::thread::sched_getaffinity(None)?;
    // The last: the first serves more interrupts.
    let last = (0..rustix::thread::CpuSet::MAX_CPU).rev();
    let core = last.into_iter().find(|core| allowed.is_set(*core));
    let mut one = rustix::thread::CpuSet::new();
    one.set(core.context("this thread may run on no core")?);
    rustix::thread::sched_setaffinity(None, &one)?;
    Ok(())
}

/// One round of everything.
pub(crate) fn measure(
    from: &NetworkNamespace,
    to: &NetworkNamespace,
    address: IpAddr,
) -> anyhow::Result<Figures> {
    Ok(Figures {
        one_stream: streams(from, to, address, 1)?,
        eight_streams: streams(from, to, address, STREAMS)?,
        requests: requests(from, to, address)?,
    })
}

/// Connections, the near and the far end of each.
fn connect(
    from: &NetworkNamespace,
    to: &NetworkNamespace,
    address: IpAddr,
    count: usize,
) -> anyhow::Result<Vec<(TcpStream, TcpStream)>> {
    // A socket stays in the namespace it was made in.
    let listener = to.run(|| TcpListener::bind((address, 0)))??;
    let port = listener.local_addr()?.port();
    let target = SocketAddr::new(address, port);
    (0..count)
        .map(|_| {
            let near = from
                .run(|| TcpStream::connect_timeout(&target, PATIENCE))?
                .with_context(|| format!("connecting to {target}"))?;
            let (far, _) = listener.accept()?;
            for end in [&near, &far] {
                end.set_nodelay(true)?;
                end.set_read_timeout(Some(PATIENCE))?;
                end.set_write_timeout(Some(PATIENCE))?;
            }
            Ok((near, far))
        })
        .collect()
}

/// Bits a second that arrive over so many connections.
fn streams(
    from: &NetworkNamespace,
    to: &NetworkNamespace,
    address: IpAddr,
    count: usize,
) -> anyhow::Result<f64> {
    let connections = connect(from, to, address, count)?;
    let (arrived, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let rate = std::thread::scope(|scope| {
        let threads = connections.into_iter().map(|(mut near, mut far)| {
            let (arrived, stop) = (&arrived, &stop);
            let sink = scope.spawn(move || -> std::io::Result<()> {
                let mut buffer = vec![0; 1 << 18];
                loop {
                    match far.read(&mut buffer)? {
                        0 => return Ok(()),
                        length => arrived.fetch_add(length as u64, Ordering::Relaxed),
                    };
                }
            });
            let source = scope.spawn(move || -> std::io::Result<()> {
                let buffer = vec![0; 1 << 17];
                while !stop.load(Ordering::Relaxed) {
                    near.write_all(&buffer)?;
                }
                Ok(())
            });
            [sink, source]
        });
        let threads: Vec<_> = threads.flatten().collect();
        let longer = if count > 1 { LONGER } else { 1 };
        std::thread::sleep(WARM * longer);
        let (start, before) = (Instant::now(), arrived.load(Ordering::Relaxed));
        std::thread::sleep(WINDOW * longer);
        let bytes = arrived.load(Ordering::Relaxed) - before;
        let rate = bytes as f64 * 8.0 / start.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().map_err(|_| ErrorKind::Other)??;
        }
        Ok::<f64, std::io::Error>(rate)
    });
    Ok(rate?)
}

/// Requests of one byte answered with one byte, one at a time, a second.
fn requests(
    from: &NetworkNamespace,
    to: &NetworkNamespace,
    address: IpAddr,
) -> anyhow::Result<f64> {
    let mut connections = connect(from, to, address, 1)?;
    let (mut near, mut far) = connections.pop().context("one connection")?;
    std::thread::scope(|scope| {
        let answering = scope.spawn(move || -> std::io::Result<()> {
            let mut byte = [0];
            while far.read(&mut byte)? > 0 {
                far.write_all(&byte)?;
            }
            Ok(())
        });
        let (mut start, mut count, mut byte) = (Instant::now(), 0_u32, [0]);
        let mut warm = false;
        while !warm || start.elapsed() < WINDOW {
            near.write_all(&byte)?;
            near.read_exact(&mut byte)?;
            count += 1;
            if !warm && start.elapsed() >= WARM {
                (start, count, warm) = (Instant::now(), 0, true);
            }
        }
        let rate = f64::from(count) / start.elapsed().as_secs_f64();
        drop(near);
        answering
            .join()
            .map_err(|_| std::io::Error::from(ErrorKind::Other))??;
        Ok(rate)
    })
}
