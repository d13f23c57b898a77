//! The server as a whole: opening, serving, stopping.

use std::convert::Infallible;
use std::net::{IpAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use ipnet::IpNet;
use tokio::sync::watch as signal;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::admission::service::Allocator;
use crate::bootstrap;
use crate::http::{App, router, stopped};
use crate::log_source::LogSource;
use crate::pki::{Pki, PkiError};
use crate::registry::Registry;
use crate::status::ApiError;
use crate::store::{Store, StoreError};

/// What an API server needs to know.
pub struct Config {
    /// The database file; made if missing.
    pub store: PathBuf,
    /// Directory of keys, certificates and the token; made if missing.
    pub pki: PathBuf,
    /// Ranges of Service addresses, at most one per family; the first is the
    /// cluster's primary family.
    pub service_ranges: Vec<IpNet>,
    /// Addresses at which nodes and pods reach the server.
    pub advertise: Vec<IpAddr>,
    /// Port at these addresses.
    pub advertise_port: u16,
    /// Where logs of containers come from.
    pub logs: Arc<dyn LogSource>,
}

/// Errors of opening and serving.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Certificates and token.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// An object that every cluster has cannot be made.
    #[error("cannot make {what}: {reason}")]
    Bootstrap {
        /// The object.
        what: String,
        /// What the server said to itself.
        reason: ApiError,
    },
    /// A listener cannot be used.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The listener's address.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The ranges of Service addresses do not fit together.
    #[error("Service ranges: {0}")]
    Ranges(String),
}

/// How long a client may take for the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long requests may still take when the server stops.
const LINGER: Duration = Duration::from_secs(3);

/// An open API server.
pub struct Server {
    app: Arc<App>,
    pki: Arc<Pki>,
    stop: signal::Sender<bool>,
}

impl Server {
    /// Opens the store, reads or makes keys, and makes the objects that every
    /// cluster has.
    ///
    /// # Errors
    /// When files cannot be used or the configuration contradicts itself.
    pub async fn open(config: Config) -> Result<Self, Error> {
        check_ranges(&config.service_ranges)?;
        let mut addresses = config.advertise.clone();
        addresses.extend(
            config
                .service_ranges
                .iter()
                .map(crate::admission::service::first_address),
        );
        let pki = Pki::open(&config.pki, &addresses)?;
        let store = Arc::new(Store::open(&config.store)?);
        let mut services = Allocator::new(config.service_ranges.clone());
        for service in store.list("services", None).objects {
            services.settle(&service.key, Some(&service.value));
        }
        let (stop, stopping) = signal::channel(false);
        let app = Arc::new(App {
            registry: Registry::new(&store),
            store,
            services: tokio::sync::Mutex::new(services),
            logs: config.logs,
            openapi: Default::default(),
            stopping,
        });
        bootstrap::run(
            &app,
            &config.service_ranges,
            &config.advertise,
            config.advertise_port,
        )
        .await?;
        Ok(Self {
            app,
            pki: Arc::new(pki),
            stop,
        })
    }

    /// Everything that is served, as a service for clients in the same
    /// process: without TLS and token.
    pub fn router(&self) -> axum::Router {
        router(Arc::clone(&self.app))
    }

    /// The token that lets clients in.
    pub fn token(&self) -> &str {
        self.pki.token()
    }

    /// The CA's certificate in PEM.
    pub fn ca(&self) -> &str {
        self.pki.ca()
    }

    /// Writes a kubeconfig for a URL at which the server listens, for
    /// instance `https://127.0.0.1:6443`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_kubeconfig(&self, path: &Path, server: &str) -> Result<(), Error> {
        Ok(self.pki.write_kubeconfig(path, server)?)
    }

    /// Serves on listeners until [`Server::shutdown`].
    ///
    /// # Errors
    /// When a listener cannot be used at all.
    pub async fn serve(&self, listeners: Vec<TcpListener>) -> Result<(), Error> {
        let mut loops = JoinSet::new();
        let pki = Arc::clone(&self.pki);
        let router = self.router().layer(axum::middleware::from_fn(
            move |request: Request, next: Next| {
                let pki = Arc::clone(&pki);
                async move { Ok::<_, Infallible>(authenticate(&pki, request, next).await) }
            },
        ));
        let acceptor = TlsAcceptor::from(self.pki.tls());
        for listener in listeners {
            let address = listener
                .local_addr()
                .map_or_else(|_| "a socket".to_owned(), |a| a.to_string());
            let failed = |source| Error::Listen {
                address: address.clone(),
                source,
            };
            listener.set_nonblocking(true).map_err(failed)?;
            let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
            loops.spawn(accept_loop(
                listener,
                acceptor.clone(),
                router.clone(),
                self.stop.subscribe(),
            ));
        }
        while loops.join_next().await.is_some() {}
        Ok(())
    }

    /// Ends watches, lets requests under way finish, ends [`Server::serve`]
    /// and closes the store.
    pub fn shutdown(&self) {
        self.stop.send_replace(true);
        self.app.store.close();
    }
}

fn check_ranges(ranges: &[IpNet]) -> Result<(), Error> {
    match ranges {
        [_] => Ok(()),
        [a, b] if a.addr().is_ipv4() != b.addr().is_ipv4() => Ok(()),
        [_, _] => Err(Error::Ranges(
            "two ranges must be of different families".into(),
        )),
        _ => Err(Error::Ranges("give one or two ranges".into())),
    }
}

async fn authenticate(pki: &Pki, request: Request, next: Next) -> Response {
    let open = matches!(
        request.uri().path(),
        "/healthz" | "/livez" | "/readyz" | "/version"
    );
    let token = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|v| v.as_bytes().strip_prefix(b"Bearer "));
    if open || token.is_some_and(|t| pki.is_token(t)) {
        next.run(request).await
    } else {
        ApiError::unauthorized().into_response()
    }
}

async fn accept_loop(
    listener: tokio::net::TcpListener,
    acceptor: TlsAcceptor,
    router: axum::Router,
    mut stopping: signal::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, or the client was gone already:
                    // nothing that ends the server. A pause, so that the
                    // first does not spin.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            // Done ones, so that the set does not grow.
            Some(_) = connections.join_next() => continue,
            () = stopped(&mut stopping) => break,
        };
        // Small events have to leave at once.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        connections.spawn(connection(
            stream,
            acceptor.clone(),
            router.clone(),
            stopping.clone(),
        ));
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(LINGER, all).await.is_err() {
        tracing::debug!("some clients did not finish in time");
    }
}

async fn connection(
    stream: tokio::net::TcpStream,
    acceptor: TlsAcceptor,
    router: axum::Router,
    mut stopping: signal::Receiver<bool>,
) {
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    let builder = auto::Builder::new(TokioExecutor::new());
    let connection =
        builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stopped(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended with an error");
    }
}
