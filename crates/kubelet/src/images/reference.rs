use std::fmt;

use super::Error;

/// An image's name in full: registry, repository, and tag or digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Host with an optional port.
    pub registry: String,
    /// Path within the registry.
    pub repository: String,
    /// Absent when only a digest is given.
    pub tag: Option<String>,
    /// `sha256:…`.
    pub digest: Option<String>,
}

impl Reference {
    /// Reads a name as Docker and containerd do: `nginx` is
    /// `docker.io/library/nginx:latest`.
    ///
    /// # Errors
    /// When it is not a name by the rules of the distribution specification.
    pub fn parse(name: &str) -> Result<Self, Error> {
        let fail = |reason: &str| Error::Name {
            name: name.into(),
            reason: reason.into(),
        };
        let (rest, digest) = match name.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (name, None),
        };
        if let Some(digest) = digest {
            let hex = digest
                .strip_prefix("sha256:")
                .ok_or_else(|| fail("the digest must be sha256:…"))?;
            if hex.len() != 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
                return Err(fail("the digest must have 64 hexadecimal digits"));
            }
        }
        // A colon after the last slash begins the tag; one before it a port.
        let slash = rest.rfind('/').map_or(0, |at| at + 1);
        let (path, tag) = match rest[slash..].split_once(':') {
            Some((last, tag)) => (&rest[..slash + last.len()], Some(tag)),
            None => (rest, None),
        };
        if let Some(tag) = tag {
            let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            let good = !tag.is_empty()
                && tag.len() <= 128
                && word(tag.as_bytes()[0])
                && tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'));
            if !good {
                return Err(fail(
                    "the tag must be letters, digits, _ . and -, 128 at most",
                ));
            }
        }
        let (registry, repository) = match path.split_once('/') {
            Some((first, others))
                if first.contains(['.', ':']) || first == "localhost" || first.starts_with('[') =>
            {
                (first.to_owned(), others.to_owned())
            }
            Some(_) => ("docker.io".to_owned(), path.to_owned()),
            None => ("docker.io".to_owned(), format!("library/{path}")),
        };
        let part = |part: &str| {
            let edge =
                |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
            edge(part.bytes().next())
                && edge(part.bytes().last())
                && part.bytes().all(|b| {
                    b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-')
                })
        };
        if path.is_empty() || !repository.split('/').all(part) {
            return Err(fail(
                "the repository must be lower-case words of letters, digits and . _ - joined by /",
            ));
        }
        let host = registry
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']'));
        if !host {
            return Err(fail(
                "the registry must be a host name with an optional port",
            ));
        }
        Ok(Self {
            registry,
            repository,
            tag: match (tag, digest) {
                (Some(tag), _) => Some(tag.into()),
                (None, None) => Some("latest".into()),
                (None, Some(_)) => None,
            },
            digest: digest.map(Into::into),
        })
    }

    /// Whether the tag is absent or `latest`, so that the image is pulled each
    /// time unless told otherwise.
    pub fn is_latest(&self) -> bool {
        self.digest.is_none() && self.tag.as_deref() == Some("latest")
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("nginx", "docker.io/library/nginx:latest")]
    #[case("nginx:1.27", "docker.io/library/nginx:1.27")]
    #[case("me/app", "docker.io/me/app:latest")]
    #[case("localhost:5000/app", "localhost:5000/app:latest")]
    #[case("localhost/app:v1", "localhost/app:v1")]
    #[case("[::1]:5000/app", "[::1]:5000/app:latest")]
    #[case("reg.example/a/b:1.0-x", "reg.example/a/b:1.0-x")]
    fn names_are_completed(#[case] name: &str, #[case] full: &str) {
        assert_eq!(Reference::parse(name).unwrap().to_string(), full);
    }

    #[test]
    fn a_digest_needs_no_tag() {
        let digest = format!("sha256:{}", "a1".repeat(32));
        let reference = Reference::parse(&format!("r.io/x@{digest}")).unwrap();
        assert_eq!(reference.tag, None);
        assert_eq!(reference.digest, Some(digest));
        assert!(!reference.is_latest());
    }

    #[rstest]
    #[case("")]
    #[case("UPPER")]
    #[case("a//b")]
    #[case("a:")]
    #[case("a:b c")]
    #[case("a@sha256:12")]
    #[case("../../etc")]
    #[case("reg.io/../x")]
    #[case("ho st.io/x")]
    fn bad_names_are_refused(#[case] name: &str) {
        assert!(Reference::parse(name).is_err());
    }
}
