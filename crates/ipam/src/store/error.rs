//! What can go wrong.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use super::Reservation;

/// Holders named in the error of a full pool.
const NAMED_HOLDERS: usize = 10;

/// A failure to reserve, release or list.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was being done, as a verb phrase.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The network's name cannot be a folder's name.
    #[error(
        "{0:?} is no network name: use letters, digits, '.', '_' and '-', starting with a letter or digit"
    )]
    NetworkName(String),
    /// Every address of a set is held.
    #[error("no free address in {ranges}: {}", holders(.held))]
    Full {
        /// The set in words.
        ranges: String,
        /// Who holds its addresses.
        held: Vec<Reservation>,
    },
    /// An address that was asked for is held by another.
    #[error("address {address} is held by {holder}")]
    Taken {
        /// The address.
        address: IpAddr,
        /// Who holds it.
        holder: String,
    },
    /// An address that was asked for may not be handed out.
    #[error(
        "address {0} cannot be given: it is in none of the network's ranges, or is a gateway, network or broadcast address or excluded"
    )]
    NotInRanges(IpAddr),
}

fn holders(held: &[Reservation]) -> String {
    let mut text = format!("{} held", held.len());
    for (at, reservation) in held.iter().take(NAMED_HOLDERS).enumerate() {
        text.push_str(if at == 0 { ", by " } else { ", " });
        text.push_str(&reservation.to_string());
    }
    if held.len() > NAMED_HOLDERS {
        text.push_str(&format!(" and {} more", held.len() - NAMED_HOLDERS));
    }
    text
}
