//! The operations.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use ipam::{Attachment, Claim, Lease, Reservation, Store};
use linux::link::{self, MacAddress};
use linux::namespace::NetworkNamespace;
use linux::netlink::Socket;
use serde_json::{Value, json};

use crate::arguments::{Arguments, Command, Extra};
use crate::attach::{self, Order, Remains, Shared};
use crate::audit;
use crate::configuration::{AttachMode, Configuration, DEFAULT_BRIDGE, Network, version_of};
use crate::error::Error;
use crate::hostports::{self, Withdrawal};
use crate::log::{self, Level, Log};
use crate::policy::{self, Gate, Question};
use crate::reaper;
use crate::resolv_conf;
use crate::result::AddResult;
use crate::version::Version;

/// Largest configuration read, in bytes.
const LARGEST_CONFIGURATION: u64 = 16 * 1024 * 1024;
/// Note of a reservation: the bridge its pod is attached to.
pub(crate) const NOTE_BRIDGE: &str = "bridge";
/// Note of a reservation: how its pod is attached.
pub(crate) const NOTE_ATTACH: &str = "attach";
/// Note of a reservation: the path of the sandbox's namespace.
pub(crate) const NOTE_SANDBOX: &str = "sandbox";
/// Note of a reservation: that namespace, as `/proc/PID/ns/net` shows it.
pub(crate) const NOTE_NAMESPACE: &str = "namespace";
/// Note of a reservation: the hardware address of the pod's interface.
pub(crate) const NOTE_MAC: &str = "mac";
/// Note of a reservation: that an interface limits what the pod sends.
const NOTE_LIMITED: &str = "limited";
/// Note of a reservation: which pods share a cable (attach mode `direct`).
pub(crate) const NOTE_PAIR: &str = "pair";

/// What is known of an order before it is carried out, for its log line.
struct Context {
    /// The version of an error's JSON: the configuration's, once it is known.
    version: String,
    log: Log,
    /// The configuration, where it is to be logged.
    configuration: Option<String>,
}

/// Carries out the runtime's order. What goes to stdout is written to
/// `output`: the result, or the error in the specification's form.
///
/// # Errors
///
/// The error that was written.
pub fn run(
    variables: &dyn Fn(&str) -> Option<OsString>,
    input: &mut dyn Read,
    output: &mut dyn Write,
) -> Result<(), Error> {
    let start = Instant::now();
    let mut context = Context {
        version: Version::LATEST.to_string(),
        log: Log::off(),
        configuration: None,
    };
    let outcome = execute(variables, input, &mut context);
    note(variables, &context, &outcome, start.elapsed());
    let text = match &outcome {
        Ok(None) => return Ok(()),
        Ok(Some(result)) => result.to_string(),
        Err(error) => error.to_json(&context.version).to_string(),
    };
    writeln!(output, "{text}").map_err(|error| Error::Io(format!("cannot answer: {error}")))?;
    outcome.map(|_| ())
}

/// Logs what was done.
fn note(
    variables: &dyn Fn(&str) -> Option<OsString>,
    context: &Context,
    outcome: &Result<Option<Value>, Error>,
    took: Duration,
) {
    let variable = |name| {
        variables(name)
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    let command = variable("CNI_COMMAND");
    let level = match (outcome, command.as_str()) {
        (Err(_), _) => Level::Error,
        (Ok(_), "ADD" | "DEL" | "GC") => Level::Info,
        (Ok(_), _) => Level::Debug,
    };
    if !context.log.wants(level) {
        return;
    }
    let mut text = command;
    for name in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS"] {
        let value = variable(name);
        if !value.is_empty() {
            text.push_str(&format!(" {}={value}", name.trim_start_matches("CNI_")));
        }
    }
    let what = match outcome {
        Err(error) => format!("code {}: {error}", error.code()),
        Ok(Some(result)) => result
            .get("ips")
            .map_or_else(|| "ok".to_owned(), |addresses| format!("ok {addresses}")),
        Ok(None) => "ok".to_owned(),
    };
    text.push_str(&format!(": {what} ({})", log::milliseconds(took)));
    if let Some(configuration) = &context.configuration {
        text.push_str(&format!(" with {configuration}"));
    }
    context.log.write(level, &text);
}

fn execute(
    variables: &dyn Fn(&str) -> Option<OsString>,
    input: &mut dyn Read,
    context: &mut Context,
) -> Result<Option<Value>, Error> {
    let command = Command::from_environment(variables)?;
    let mut text = Vec::new();
    input
        .take(LARGEST_CONFIGURATION)
        .read_to_end(&mut text)
        .map_err(|error| Error::Io(format!("cannot read the configuration: {error}")))?;
    let value: Value =
        serde_json::from_slice(&text).map_err(|error| Error::Decode(error.to_string()))?;
    if value.is_object() {
        context.log = Log::of(&value);
    }
    if context.log.wants(Level::Debug) {
        context.configuration = Some(value.to_string());
    }
    if command == Command::Version {
        return Ok(Some(versions(&value)));
    }
    let version = version_of(&value)?;
    version.as_str().clone_into(&mut context.version);
    if version < command.since() {
        return Err(Error::Command {
            command: command.as_str(),
            version,
            since: command.since(),
        });
    }
    match command {
        Command::Add => {
            let arguments = Arguments::from_environment(variables)?;
            let configuration = Configuration::parse(value, &arguments.extra)?;
            let result = add(&configuration, &arguments)?;
            Ok(Some(result.to_json(configuration.version)))
        }
        Command::Del => {
            let arguments = Arguments::from_environment(variables)?;
            delete(&Network::parse(&value)?, &arguments).map(|()| None)
        }
        Command::Check => {
            let arguments = Arguments::from_environment(variables)?;
            let configuration = Configuration::parse(value, &arguments.extra)?;
            check(&configuration, &arguments).map(|()| None)
        }
        Command::Gc => {
            collect_garbage(&Network::parse(&value)?)?;
            // Ports whose pods have no reservation, as far as the configuration
            // still says which addresses are this network's.
            if let Ok(configuration) = Configuration::parse(value, &Extra::default()) {
                collect_ports(&configuration)?;
            }
            Ok(None)
        }
        Command::Status => {
            let configuration =
                Configuration::parse(value, &Extra::default()).map_err(|error| match error {
                    Error::TryAgain(_) => Error::NotAvailable(error.to_string()),
                    other => other,
                })?;
            status(&configuration).map(|()| None)
        }
        Command::Version => Ok(Some(versions(&value))),
    }
}

/// VERSION echoes the version it is asked with.
fn versions(configuration: &Value) -> Value {
    let asked = configuration
        .get("cniVersion")
        .and_then(Value::as_str)
        .filter(|text| !text.is_empty())
        .unwrap_or(Version::LATEST.as_str());
    json!({
        "cniVersion": asked,
        "supportedVersions": Version::ALL.map(Version::as_str),
    })
}

fn store(network: &Network) -> Result<Store, Error> {
    Ok(Store::new(&network.state, &network.name)?)
}

fn previous(configuration: &Configuration) -> Result<Option<AddResult>, Error> {
    configuration
        .previous
        .as_ref()
        .map(|value| {
            AddResult::from_json(value)
                .map_err(|reason| Error::Decode(format!("prevResult: {reason}")))
        })
        .transpose()
}

fn add(configuration: &Configuration, arguments: &Arguments) -> Result<AddResult, Error> {
    let earlier = previous(configuration)?;
    let path = arguments.required_namespace()?;
    let namespace = NetworkNamespace::open(path).map_err(|error| Error::Environment {
        name: "CNI_NETNS",
        reason: error.to_string(),
    })?;
    let mut socket = Socket::open_route()?;
    let own = NetworkNamespace::of_socket(&socket)?;
    let same = namespace
        .is_same_as(&own)
        .map_err(|error| Error::Io(format!("cannot look at {}: {error}", path.display())))?;
    if same {
        return Err(Error::Environment {
            name: "CNI_NETNS",
            reason: format!(
                "{} is the node's own network namespace; a container needs its own",
                path.display()
            ),
        });
    }
    let interface = &arguments.attachment.interface;
    let mut inside = namespace.visit_from(&own, Socket::open_route)??;
    if link::get(&mut inside, interface)?.is_some() {
        // Whatever it is, it is not this ADD's to touch or to undo.
        return Err(Error::Environment {
            name: "CNI_IFNAME",
            reason: format!("the container has an interface {interface} already"),
        });
    }
    let store = store(&configuration.network)?;
    let mac = attach::pod_mac(&arguments.attachment, configuration.mac);
    let claim = Claim {
        attachment: arguments.attachment.clone(),
        pod: arguments.extra.pod.clone(),
        wanted: configuration.addresses.clone(),
        apart: configuration.attach.is_apart(),
        notes: notes(configuration, path, &namespace, mac)?,
    };
    let dns = match (&configuration.dns, &configuration.resolv_conf) {
        (None, Some(path)) => resolv_conf::read(path)?,
        (dns, _) => dns.clone(),
    };
    let addresses = reserve(&store, &claim, configuration)?;
    let order = Order {
        configuration,
        attachment: &arguments.attachment,
        home: &own,
        namespace: &namespace,
        sandbox: path,
        addresses: &addresses,
    };
    let attached =
        await_policies(&order, &claim).and_then(|()| attach(&mut socket, &mut inside, &order));
    match attached {
        Ok(result) => {
            let result = AddResult { dns, ..result };
            Ok(match earlier {
                Some(earlier) => result.after(earlier),
                None => result,
            })
        }
        Err(error) => {
            // The first failure is the one to tell; what undoing leaves, the
            // runtime's DEL removes.
            let _ = delete(&configuration.network, arguments);
            Err(error)
        }
    }
}

/// What undoing an attachment and judging it needs to know.
fn notes(
    configuration: &Configuration,
    path: &Path,
    namespace: &NetworkNamespace,
    mac: MacAddress,
) -> Result<HashMap<String, String>, Error> {
    let identity = namespace
        .identity()
        .map_err(|error| Error::Io(format!("cannot look at {}: {error}", path.display())))?;
    let mut notes = HashMap::from([
        (NOTE_BRIDGE.to_owned(), configuration.network.bridge.clone()),
        (NOTE_MAC.to_owned(), mac.to_string()),
        (
            NOTE_ATTACH.to_owned(),
            configuration.attach.as_str().to_owned(),
        ),
        (NOTE_SANDBOX.to_owned(), path.display().to_string()),
        (NOTE_NAMESPACE.to_owned(), identity.to_string()),
    ]);
    if configuration.attach == AttachMode::Direct {
        notes.extend(
            configuration
                .pair
                .clone()
                .map(|pair| (NOTE_PAIR.to_owned(), pair)),
        );
    }
    if configuration.bandwidth.egress_rate != 0 {
        notes.insert(NOTE_LIMITED.to_owned(), "true".to_owned());
    }
    if !configuration.port_mappings.is_empty() {
        let ports = json!(configuration.port_mappings).to_string();
        notes.insert(hostports::NOTE.to_owned(), ports);
    }
    Ok(notes)
}

/// Attaches a pod, limits its cable and opens its ports.
fn attach(socket: &mut Socket, inside: &mut Socket, order: &Order<'_>) -> Result<AddResult, Error> {
    let result = attach::attach(socket, inside, order)?;
    let configuration = order.configuration;
    let addresses: Vec<_> = order.addresses.iter().map(|a| a.address.addr()).collect();
    let mappings = &configuration.port_mappings;
    if !mappings.is_empty() {
        let unanswered6 = hostports::loopback::is_unanswered6(configuration.attach);
        let root = &configuration.network.state;
        let container = &order.attachment.container_id;
        hostports::publish(root, container, mappings, &addresses, unanswered6)?;
        let interface = attach::node_interface(
            configuration.attach,
            &configuration.network.bridge,
            order.attachment,
        );
        hostports::loopback::admit(socket, &interface, mappings, &addresses)?;
    }
    Ok(result)
}

/// Reserves addresses. Those of pods whose interfaces are still being deleted
/// are waited for when there are no others.
fn reserve(store: &Store, claim: &Claim, configuration: &Configuration) -> Result<Lease, Error> {
    match store.reserve(claim, &configuration.ranges) {
        Err(ipam::Error::Full { .. } | ipam::Error::Taken { .. })
            if is_releasing(&configuration.network.state)? =>
        {
            reaper::reap(&configuration.network.state)?;
            Ok(store.reserve(claim, &configuration.ranges)?)
        }
        other => Ok(other?),
    }
}

/// Whether a network has pods whose interfaces are still being deleted.
fn is_releasing(root: &Path) -> Result<bool, Error> {
    for store in Store::all(root)? {
        if store.is_releasing()? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Waits until the policies that select the pod are in force, where they are
/// enforced. Before the pod is attached, so that no packet passes earlier.
fn await_policies(order: &Order<'_>, claim: &Claim) -> Result<(), Error> {
    let Some(gate) = &order.configuration.policy else {
        return Ok(());
    };
    gate.wait(&Question {
        version: policy::VERSION,
        network: order.configuration.network.name.clone(),
        attachment: claim.attachment.clone(),
        host_interface: attach::host_interface(&claim.attachment),
        pod: claim.pod.clone(),
        addresses: order.addresses.iter().map(|a| a.address.addr()).collect(),
    })
}

/// Removes an attachment. Everything may be gone already: the namespace, the
/// interface, the reservation. The reservation is retired last, so that a DEL
/// that is killed can be repeated.
fn delete(network: &Network, arguments: &Arguments) -> Result<(), Error> {
    let store = store(network)?;
    let attachment = &arguments.attachment;
    let reservation = store.find(attachment)?;
    let namespace = arguments
        .namespace
        .as_ref()
        .and_then(|path| NetworkNamespace::open(path).ok());
    // Whatever the path leads to now, the node's interfaces are not the pod's.
    let mut socket = Socket::open_route()?;
    let own = NetworkNamespace::of_socket(&socket)?;
    let namespace = namespace.filter(|namespace| matches!(namespace.is_same_as(&own), Ok(false)));
    let place = Place {
        home: &own,
        pod: namespace.as_ref(),
    };
    let left = remove(
        &mut socket,
        network,
        &store,
        attachment,
        reservation.as_ref(),
        &place,
    )?;
    drop(socket);
    // Also when there was nothing of this pod: a DEL that was killed is repeated,
    // and what it had set aside is nobody else's to think of.
    if left || store.is_releasing()? {
        reaper::start(&network.state)?;
    }
    Ok(())
}

/// The namespaces of an attachment.
struct Place<'a> {
    /// The node's, in which this thread is.
    home: &'a NetworkNamespace,
    /// The pod's, when it is there.
    pod: Option<&'a NetworkNamespace>,
}

/// Takes an attachment out of use; whether the reaper has something to do then.
fn remove(
    socket: &mut Socket,
    network: &Network,
    store: &Store,
    attachment: &Attachment,
    reservation: Option<&Reservation>,
    place: &Place<'_>,
) -> Result<bool, Error> {
    let cable = match reservation {
        Some(reservation) => Shared::of(store, reservation)?,
        None => None,
    };
    let note = |name| reservation.and_then(|reservation| reservation.notes.get(name));
    let remains = Remains {
        attachment,
        cable: cable.as_ref(),
        bridge: note(NOTE_ATTACH)
            .is_none_or(|mode| mode == AttachMode::Bridge.as_str())
            .then(|| note(NOTE_BRIDGE).unwrap_or(&network.bridge).as_str()),
        // Without a reservation nothing says so.
        limited: reservation.is_none() || note(NOTE_LIMITED).is_some(),
        addresses: reservation.map_or(&[][..], |reservation| &reservation.addresses),
        mac: attach::pod_mac(attachment, note(NOTE_MAC).and_then(|mac| mac.parse().ok())),
        home: place.home,
        namespace: place.pod,
    };
    let links = attach::detach(socket, &remains)?;
    Ok(store.retire(attachment)?.is_some() || links)
}

/// The namespace that an attachment was made in, if it lives on: the interface of
/// a pod that has no other end on the node is to be found there.
fn sandbox(reservation: &Reservation, home: &NetworkNamespace) -> Option<NetworkNamespace> {
    let namespace = NetworkNamespace::open(reservation.notes.get(NOTE_SANDBOX)?).ok()?;
    // The path may lead to another one by now.
    let identity = namespace.identity().ok()?;
    let same = reservation.notes.get(NOTE_NAMESPACE) == Some(&identity.to_string());
    (same && matches!(namespace.is_same_as(home), Ok(false))).then_some(namespace)
}

/// Takes what is left of a reservation whose sandbox is gone out of use; the
/// rest is the reaper's.
pub(crate) fn free(store: &Store, reservation: &Reservation) -> Result<(), Error> {
    let network = Network::named(store.network());
    let mut socket = Socket::open_route()?;
    let place = Place {
        home: &NetworkNamespace::of_socket(&socket)?,
        pod: None,
    };
    let attachment = &reservation.attachment;
    remove(
        &mut socket,
        &network,
        store,
        attachment,
        Some(reservation),
        &place,
    )
    .map(drop)
}

/// Opens the ports of an attached pod again where the node has lost them; whether
/// it had.
pub(crate) fn reopen(root: &Path, store: &Store, reservation: &Reservation) -> Result<bool, Error> {
    let mappings = hostports::of(reservation)?;
    if mappings.is_empty() {
        return Ok(false);
    }
    let (attachment, pod) = (&reservation.attachment, &reservation.addresses);
    let attach = match reservation.notes.get(NOTE_ATTACH) {
        Some(mode) if mode == AttachMode::Bridge.as_str() => AttachMode::Bridge,
        _ => AttachMode::Routed,
    };
    let bridge = reservation.notes.get(NOTE_BRIDGE);
    let bridge = bridge.map_or(DEFAULT_BRIDGE, String::as_str);
    let interface = attach::node_interface(attach, bridge, attachment);
    let mut socket = Socket::open_route()?;
    let container = &attachment.container_id;
    let lost = match hostports::verify(root, container, &mappings, pod)
        .and_then(|()| hostports::loopback::verify(&mut socket, &interface, &mappings, pod))
    {
        Ok(()) => false,
        Err(Error::Mismatch(_)) => true,
        Err(error) => return Err(error),
    };
    if lost {
        let unanswered6 = hostports::loopback::is_unanswered6(attach);
        hostports::publish(root, container, &mappings, pod, unanswered6)?;
        hostports::loopback::admit(&mut socket, &interface, &mappings, pod)?;
        if store.find(attachment)?.as_ref() != Some(reservation) {
            // Detached meanwhile.
            Withdrawal::default().withdraw(&[(mappings, pod)])?;
        }
    }
    Ok(lost)
}

/// Compares what there is with what ADD answered.
fn check(configuration: &Configuration, arguments: &Arguments) -> Result<(), Error> {
    let expected = previous(configuration)?.ok_or_else(|| {
        Error::Configuration("CHECK needs prevResult, the result of ADD".to_owned())
    })?;
    let attachment = &arguments.attachment;
    let unknown = || Error::UnknownContainer {
        container: attachment.container_id.clone(),
        interface: attachment.interface.clone(),
    };
    let reservation = store(&configuration.network)?
        .find(attachment)?
        .ok_or_else(unknown)?;
    for address in &reservation.addresses {
        if !expected
            .addresses
            .iter()
            .any(|a| a.address.addr() == *address)
        {
            return Err(Error::Mismatch(format!(
                "address {address} is reserved for the container, and not in prevResult"
            )));
        }
    }
    let namespace = NetworkNamespace::open(arguments.required_namespace()?)?;
    attach::verify_pod(&namespace, &attachment.interface, &expected)?;
    let mut socket = Socket::open_route()?;
    let order = Order {
        configuration,
        attachment,
        home: &NetworkNamespace::of_socket(&socket)?,
        namespace: &namespace,
        sandbox: arguments.required_namespace()?,
        addresses: &[],
    };
    attach::verify_node(&mut socket, &order, &reservation.addresses)?;
    let mappings = &configuration.port_mappings;
    hostports::verify(
        &configuration.network.state,
        &attachment.container_id,
        mappings,
        &reservation.addresses,
    )?;
    let interface = attach::node_interface(
        configuration.attach,
        &configuration.network.bridge,
        attachment,
    );
    hostports::loopback::verify(&mut socket, &interface, mappings, &reservation.addresses)
}

/// Removes what belongs to none of the attachments the runtime names.
fn collect_garbage(network: &Network) -> Result<(), Error> {
    let valid = network.valid_attachments.as_ref().ok_or_else(|| {
        Error::Configuration(
            "GC needs cni.dev/valid-attachments; without it everything would go".to_owned(),
        )
    })?;
    let store = store(network)?;
    let mut socket = Socket::open_route()?;
    let home = NetworkNamespace::of_socket(&socket)?;
    let mut first_failure = None;
    for reservation in store.list()? {
        let attachment = &reservation.attachment;
        if valid.contains(attachment) {
            continue;
        }
        let sandbox = sandbox(&reservation, &home);
        let place = Place {
            home: &home,
            pod: sandbox.as_ref(),
        };
        // One that cannot be removed must not keep the others.
        let removed = remove(
            &mut socket,
            network,
            &store,
            attachment,
            Some(&reservation),
            &place,
        );
        if let Err(error) = removed {
            first_failure.get_or_insert(error);
        }
    }
    // Cables without a reservation: the state directory was emptied.
    let place = Place {
        home: &home,
        pod: None,
    };
    for attachment in attach::attachments(&mut socket, &network.name)? {
        if !valid.contains(&attachment)
            && let Err(error) = remove(&mut socket, network, &store, &attachment, None, &place)
        {
            first_failure.get_or_insert(error);
        }
    }
    // Nobody waits for GC as they do for DEL: all is gone when it answers.
    if let Err(error) = reaper::reap(&network.state) {
        first_failure.get_or_insert(error);
    }
    first_failure.map_or(Ok(()), Err)
}

fn collect_ports(configuration: &Configuration) -> Result<(), Error> {
    // Another network may have the same ranges.
    let mut held = HashSet::new();
    for store in Store::all(&configuration.network.state)? {
        let reservations = store.list()?.into_iter();
        held.extend(reservations.flat_map(|reservation| reservation.addresses));
    }
    let ranges = &configuration.ranges;
    hostports::collect(
        |address| ranges.iter().any(|set| set.contains(address)),
        &held,
    )
}

/// Whether an ADD could be served now, and whether what it lacks is missing to
/// attached pods too.
fn status(configuration: &Configuration) -> Result<(), Error> {
    let unavailable = |error: &dyn std::fmt::Display| Error::NotAvailable(error.to_string());
    let store = store(&configuration.network)?;
    let pods = store.list()?.len();
    let mut socket = Socket::open_route().map_err(|error| unavailable(&error))?;
    let shared = attach::verify_shared(&mut socket, configuration, pods > 0);
    let probed = configuration.policy.as_ref().map_or(Ok(()), Gate::probe);
    match shared.and(probed) {
        Err(Error::NotAvailable(reason)) if pods > 0 => {
            return Err(Error::Degraded(format!(
                "{reason}; {pods} attached pods suffer from it"
            )));
        }
        other => other?,
    }
    if let Err(error) = store.has_room(&configuration.ranges, configuration.attach.is_apart()) {
        // Counted only now that it matters: it asks for every interface.
        return Err(match audit::leaks(&store) {
            Ok(leaks @ 1..) => unavailable(&format!(
                "{error}; {leaks} of them leak: the runtime's GC or podwire's agent frees them, \
                 podwire ipam check names them"
            )),
            _ => unavailable(&error),
        });
    }
    attach::serveable(configuration)
}
