//! The runtime's order: environment variables.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

use ipam::{Attachment, Pod};
use linux::link::{self, MacAddress};

use crate::error::Error;
use crate::version::Version;

/// What the runtime wants (`CNI_COMMAND`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Attach a container.
    Add,
    /// Detach it.
    Del,
    /// Verify an attachment.
    Check,
    /// Say which versions are spoken.
    Version,
    /// Say whether ADD can be served.
    Status,
    /// Remove what belongs to no valid attachment.
    Gc,
}

impl Command {
    /// As `CNI_COMMAND` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Version => "VERSION",
            Self::Status => "STATUS",
            Self::Gc => "GC",
        }
    }

    /// The first version of the specification that has it.
    pub fn since(self) -> Version {
        match self {
            Self::Add | Self::Del | Self::Version => Version::V0_1_0,
            Self::Check => Version::V0_4_0,
            Self::Status | Self::Gc => Version::V1_1_0,
        }
    }

    /// Reads `CNI_COMMAND`.
    pub fn from_environment(variables: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, Error> {
        const NAME: &str = "CNI_COMMAND";
        match text(variables, NAME)?.as_deref() {
            Some("ADD") => Ok(Self::Add),
            Some("DEL") => Ok(Self::Del),
            Some("CHECK") => Ok(Self::Check),
            Some("VERSION") => Ok(Self::Version),
            Some("STATUS") => Ok(Self::Status),
            Some("GC") => Ok(Self::Gc),
            Some(other) => Err(Error::Environment {
                name: NAME,
                reason: format!("{other:?} is none of ADD, DEL, CHECK, VERSION, STATUS, GC"),
            }),
            None => Err(Error::Environment {
                name: NAME,
                reason: "missing; a container runtime sets it".to_owned(),
            }),
        }
    }
}

/// Keys of `CNI_ARGS` that are understood.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Extra {
    /// The pod, when the runtime is a kubelet's.
    pub pod: Option<Pod>,
    /// An address asked for (`IP`).
    pub address: Option<IpAddr>,
    /// A hardware address asked for (`MAC`).
    pub mac: Option<MacAddress>,
}

/// The parameters of ADD, DEL and CHECK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments {
    /// Container and interface.
    pub attachment: Attachment,
    /// Path of the container's network namespace. DEL may come without.
    pub namespace: Option<PathBuf>,
    /// `CNI_ARGS`.
    pub extra: Extra,
}

impl Arguments {
    /// Reads and checks the variables.
    pub fn from_environment(variables: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, Error> {
        let required = |name| {
            text(variables, name)?.ok_or_else(|| Error::Environment {
                name,
                reason: "missing".to_owned(),
            })
        };
        let container = required("CNI_CONTAINERID")?;
        if !valid_identifier(&container) {
            return Err(Error::Environment {
                name: "CNI_CONTAINERID",
                reason: format!(
                    "{container:?} is not made of letters, digits, '.', '_' and '-' after a letter or digit"
                ),
            });
        }
        let interface = required("CNI_IFNAME")?;
        if !link::valid_name(&interface) {
            return Err(Error::Environment {
                name: "CNI_IFNAME",
                reason: format!(
                    "{interface:?} is no interface name: 1 to {} bytes without '/', ':', '%' and blanks",
                    link::NAME_LENGTH
                ),
            });
        }
        Ok(Self {
            attachment: Attachment::new(container, interface),
            namespace: text(variables, "CNI_NETNS")?.map(PathBuf::from),
            extra: Extra::parse(text(variables, "CNI_ARGS")?.as_deref().unwrap_or_default())?,
        })
    }

    /// The namespace's path, which ADD and CHECK cannot do without.
    pub fn required_namespace(&self) -> Result<&PathBuf, Error> {
        self.namespace.as_ref().ok_or_else(|| Error::Environment {
            name: "CNI_NETNS",
            reason: "missing".to_owned(),
        })
    }
}

impl Extra {
    /// Reads `CNI_ARGS`: `KEY=VALUE` pairs separated by semicolons. An unknown
    /// key is an error unless `IgnoreUnknown` is true.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let wrong = |reason: String| Error::Environment {
            name: "CNI_ARGS",
            reason,
        };
        let mut extra = Self::default();
        let mut pod = Pod::default();
        let mut unknown = None;
        let mut ignore_unknown = false;
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| wrong(format!("{pair:?} is not KEY=VALUE")))?;
            match key {
                "IgnoreUnknown" => {
                    ignore_unknown = match value {
                        "1" | "true" | "True" | "TRUE" | "t" | "T" => true,
                        "0" | "false" | "False" | "FALSE" | "f" | "F" => false,
                        _ => return Err(wrong(format!("IgnoreUnknown={value:?} is not 0 or 1"))),
                    };
                }
                "K8S_POD_NAMESPACE" => value.clone_into(&mut pod.namespace),
                "K8S_POD_NAME" => value.clone_into(&mut pod.name),
                "K8S_POD_UID" => value.clone_into(&mut pod.uid),
                "K8S_POD_INFRA_CONTAINER_ID" => {}
                "IP" => {
                    let parsed = value
                        .split('/')
                        .next()
                        .and_then(|address| address.parse().ok())
                        .ok_or_else(|| wrong(format!("IP={value:?} is no address")))?;
                    extra.address = Some(parsed);
                }
                "MAC" => {
                    let mac: MacAddress = value
                        .parse()
                        .map_err(|error| wrong(format!("MAC: {error}")))?;
                    extra.mac = Some(mac);
                }
                other => unknown = Some(other.to_owned()),
            }
        }
        if let (Some(key), false) = (unknown, ignore_unknown) {
            return Err(wrong(format!(
                "unknown key {key:?} (add IgnoreUnknown=1 to have it ignored)"
            )));
        }
        if !pod.name.is_empty() {
            extra.pod = Some(pod);
        }
        Ok(extra)
    }
}

/// `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, what the specification allows for container
/// ids and network names; 200 bytes at most, so that it can be part of a path.
pub fn valid_identifier(text: &str) -> bool {
    text.len() <= 200
        && text
            .bytes()
            .next()
            .is_some_and(|first| first.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

/// A variable's text; `None` when it is missing or empty.
fn text(
    variables: &dyn Fn(&str) -> Option<OsString>,
    name: &'static str,
) -> Result<Option<String>, Error> {
    match variables(name) {
        None => Ok(None),
        Some(value) => match value.into_string() {
            Ok(text) if text.is_empty() => Ok(None),
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(Error::Environment {
                name,
                reason: "not UTF-8".to_owned(),
            }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_kubelets_arguments_name_the_pod() {
        let extra = Extra::parse(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=x;K8S_POD_UID=u;COLOUR=red",
        )
        .unwrap();
        let pod = extra.pod.unwrap();
        assert_eq!(
            (pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_str()),
            ("shop", "web-0", "u")
        );
    }

    #[test]
    fn an_unknown_key_is_refused_wherever_it_stands_unless_told_otherwise() {
        assert!(Extra::parse("A=b;IgnoreUnknown=true").is_ok());
        assert!(Extra::parse("IgnoreUnknown=0;A=b").is_err());
        assert!(Extra::parse("IgnoreUnknown=perhaps").is_err());
        let extra = Extra::parse("IP=10.0.0.7/24;MAC=0a:00:00:00:00:01;").unwrap();
        assert_eq!(extra.address, Some([10, 0, 0, 7].into()));
        assert_eq!(extra.mac, Some(MacAddress([10, 0, 0, 0, 0, 1])));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in ".{0,80}") {
            let _ = Extra::parse(&text);
        }

        #[test]
        fn an_identifier_is_one_part_of_a_path(text in ".{0,40}") {
            if valid_identifier(&text) {
                prop_assert!(!text.contains('/') && !text.starts_with('.') && !text.is_empty());
            }
        }
    }
}
