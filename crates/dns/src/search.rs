//! The client's search list, walked here.
//!
//! With `ndots:5` a pod asks for `example.com` as
//! `example.com.NAMESPACE.svc.DOMAIN`, `example.com.svc.DOMAIN`,
//! `example.com.DOMAIN`, the node's domains, its own and at last as it stands: a
//! round trip each, for A and for AAAA. Who the client is says what it will try next,
//! so the first question can be answered with what the last would be.

use hickory_proto::rr::Name;

use crate::config::Config;
use crate::model::Pod;
use crate::names::Labels;

/// The names a pod's resolver tries after `name`, in its order, if `name` is the
/// first one it tries for something.
///
/// The first is the only one to complete: a client that is told that it does not
/// exist goes on by itself, and each later one would be walked again.
#[must_use]
pub fn next_names(
    config: &Config,
    node_search: &[Name],
    pod: &Pod,
    name: &Name,
) -> Option<Vec<Name>> {
    if !pod.cluster_first {
        return None;
    }
    let labels = Labels::of(name);
    let left = labels.before(&Labels::of(&config.domain))?;
    // Something, the namespace, "svc".
    let wanted = left.checked_sub(2).filter(|wanted| *wanted > 0)?;
    if labels.get(left - 1) != b"svc" || labels.get(left - 2) != pod.namespace.as_bytes() {
        return None;
    }
    // With the letters as they were asked for.
    let mut wanted = Name::from_labels(name.iter().take(wanted)).ok()?;
    wanted.set_fqdn(false);
    let svc = Name::from_labels([b"svc".as_slice()])
        .and_then(|svc| svc.append_domain(&config.domain))
        .ok()?;
    let domains = [svc, config.domain.clone()]
        .into_iter()
        .chain(node_search.iter().chain(&pod.searches).cloned())
        .chain([Name::root()]);
    Some(
        domains
            // Those that become too long do not exist.
            .filter_map(|domain| wanted.clone().append_domain(&domain).ok())
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(
        "example.com.default.svc.cluster.local.",
        Some(
            "example.com.svc.cluster.local. example.com.cluster.local. example.com.corp.example. example.com."
        )
    )]
    #[case(
        "WEB.default.svc.cluster.local.",
        Some("WEB.svc.cluster.local. WEB.cluster.local. WEB.corp.example. WEB.")
    )]
    #[case::of_another_namespace("example.com.other.svc.cluster.local.", None)]
    #[case::second_of_the_list("example.com.svc.cluster.local.", None)]
    #[case::the_domain_itself("default.svc.cluster.local.", None)]
    #[case::not_ours("example.com.", None)]
    fn the_first_name_of_a_list_tells_the_rest(#[case] name: &str, #[case] expected: Option<&str>) {
        let config = Config::new(Name::from_ascii("cluster.local.").unwrap());
        let node_search = [Name::from_ascii("corp.example.").unwrap()];
        let mut pod = Pod {
            namespace: "default".into(),
            name: "p".into(),
            addresses: vec![],
            cluster_first: true,
            searches: Box::default(),
        };
        let name = Name::from_ascii(name).unwrap();
        let names = next_names(&config, &node_search, &pod, &name);
        let names = names.map(|names| {
            let names: Vec<String> = names.iter().map(Name::to_ascii).collect();
            names.join(" ")
        });
        assert_eq!(names.as_deref(), expected);
        // Domains of the pod's own come after the node's.
        pod.searches = [Name::from_ascii("own.example.").unwrap()].into();
        let names = next_names(&config, &node_search, &pod, &name);
        let own = expected.map(|expected| {
            let (before, last) = expected.rsplit_once(' ').unwrap();
            format!("{before} {last}own.example. {last}")
        });
        let names = names.map(|names| {
            let names: Vec<String> = names.iter().map(Name::to_ascii).collect();
            names.join(" ")
        });
        assert_eq!(names, own);
        pod.cluster_first = false;
        assert_eq!(next_names(&config, &node_search, &pod, &name), None);
    }
}
