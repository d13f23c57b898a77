//! The resolver configuration of the node, resolv.conf(5).

use std::net::{IpAddr, SocketAddr};

use hickory_proto::rr::Name;

/// Port of DNS (RFC 1035 4.2).
pub const PORT: u16 = 53;

/// What is used of a resolv.conf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// Servers.
    pub servers: Vec<SocketAddr>,
    /// Search domains.
    pub search: Vec<Name>,
    /// What was not understood, for people.
    pub problems: Vec<String>,
}

/// Reads a resolv.conf. Servers at `own` addresses are left out: they would ask
/// us what we ask them.
#[must_use]
pub fn parse(text: &str, own: &[IpAddr]) -> ResolvConf {
    let mut conf = ResolvConf::default();
    for (number, line) in text.lines().enumerate() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                let Some(word) = words.next() else { continue };
                // A zone index (fe80::1%eth0) names a link this may not even have.
                match word.parse::<IpAddr>() {
                    Ok(address) if own.contains(&address) => conf.problems.push(format!(
                        "line {}: server {address} is this one; it is left out",
                        number + 1
                    )),
                    Ok(address) => conf.servers.push(SocketAddr::new(address, PORT)),
                    Err(_) => conf.problems.push(format!(
                        "line {}: {word:?} is no address of a server",
                        number + 1
                    )),
                }
            }
            // Of several lines the last counts, and "domain" is an old "search".
            Some("search" | "domain") => {
                conf.search.clear();
                for word in words {
                    match Name::from_ascii(word) {
                        Ok(mut name) if !name.is_root() => {
                            name.set_fqdn(true);
                            conf.search.push(name);
                        }
                        Ok(_) => {}
                        Err(_) => conf
                            .problems
                            .push(format!("line {}: {word:?} is no domain", number + 1)),
                    }
                }
            }
            _ => {}
        }
    }
    conf
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_and_search_domains_are_read_and_the_rest_is_named() {
        let text = "# made by hand\nnameserver 192.0.2.1 # first\nnameserver 2001:db8::1\n\
            nameserver fe80::1%eth0\nnameserver\nnameserver 169.254.20.10\n\
            search old.example\nsearch corp.example . example.com.\noptions ndots:2\n";
        let conf = parse(text, &["169.254.20.10".parse().unwrap()]);
        let servers: Vec<String> = conf.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.1:53", "[2001:db8::1]:53"]);
        let search: Vec<String> = conf.search.iter().map(Name::to_ascii).collect();
        assert_eq!(search, ["corp.example.", "example.com."]);
        assert_eq!(conf.problems.len(), 2, "{:?}", conf.problems);
        assert!(conf.problems[1].contains("169.254.20.10 is this one"));
        assert_eq!(parse("", &[]), ResolvConf::default());
    }
}
