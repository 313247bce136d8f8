//! systemd's manager, the system's or the user's, and the calls that we make to it.

use std::os::unix::net::SocketAddr;
use std::path::PathBuf;

use super::Property;
use crate::dbus::{Connection, Error, Target, Value, addresses, at};

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER: Target<'_> =
    Target { destination: SYSTEMD, path: "/org/freedesktop/systemd1", interface: "org.freedesktop.systemd1.Manager" };
const PROPERTIES: Target<'_> = Target { interface: "org.freedesktop.DBus.Properties", ..MANAGER };
const BUS: Target<'_> =
    Target { destination: "org.freedesktop.DBus", path: "/org/freedesktop/DBus", interface: "org.freedesktop.DBus" };

pub struct Manager {
    connection: Connection,
}

impl Manager {
    /// Connects to systemd itself, or by way of the message bus.
    pub fn connect(user: bool) -> Result<Manager, Error> {
        let (direct, bus) = sockets(user);
        for (address, by_bus) in
            direct.iter().map(|address| (address, false)).chain(bus.iter().map(|address| (address, true)))
        {
            if let Ok(connection) = Connection::open(address) {
                let mut manager = Manager { connection };
                if by_bus {
                    manager.connection.call(BUS, "Hello", &[])?;
                    let rule = format!("type='signal',interface='{}',member='JobRemoved'", MANAGER.interface);
                    manager.connection.call(BUS, "AddMatch", &[Value::str(rule)])?;
                }
                manager.connection.call(MANAGER, "Subscribe", &[])?;
                return Ok(manager);
            }
        }
        let name = |address: &SocketAddr| address.as_pathname().map(|path| path.display().to_string());
        Err(Error::Unreachable(direct.iter().chain(&bus).filter_map(name).collect::<Vec<_>>().join(", ")))
    }

    /// Starts a scope; returns the job that does it.
    pub fn start(&mut self, unit: &str, properties: &[Property]) -> Result<String, Error> {
        let others = Value::Array("(sa(sv))".into(), Vec::new());
        let body = [Value::str(unit), Value::str("replace"), list(properties), others];
        job(&self.connection.call(MANAGER, "StartTransientUnit", &body)?)
    }

    pub fn stop(&mut self, unit: &str) -> Result<String, Error> {
        job(&self.connection.call(MANAGER, "StopUnit", &[Value::str(unit), Value::str("replace")])?)
    }

    pub fn set(&mut self, unit: &str, properties: &[Property]) -> Result<(), Error> {
        let body = [Value::str(unit), Value::Bool(true), list(properties)]; // until the unit ends, not for ever
        self.connection.call(MANAGER, "SetUnitProperties", &body).map(drop)
    }

    pub fn reset_failed(&mut self, unit: &str) -> Result<(), Error> {
        self.connection.call(MANAGER, "ResetFailedUnit", &[Value::str(unit)]).map(drop)
    }

    /// Waits for the end of a job; returns its result, `done` if all is well.
    pub fn wait(&mut self, job: &str) -> Result<String, Error> {
        loop {
            let signal = self.connection.signal()?;
            // JobRemoved(u id, o job, s unit, s result)
            if let ("JobRemoved", [_, removed, _, result]) = (signal.member.as_str(), &signal.body[..])
                && removed.as_str() == Some(job)
            {
                return Ok(result.as_str().unwrap_or_default().to_owned());
            }
        }
    }

    /// A property of the manager that is a text.
    pub fn text(&mut self, name: &str) -> Result<String, Error> {
        let got = self.connection.call(PROPERTIES, "Get", &[Value::str(MANAGER.interface), Value::str(name)])?;
        Ok(got.first().and_then(Value::as_str).unwrap_or_default().to_owned())
    }

    /// systemd's version, `257` of `257.9-1~deb13u1`; 0 if it does not tell.
    pub fn version(&mut self) -> u32 {
        let text = self.text("Version").unwrap_or_default();
        let digits: String = text.trim_start_matches('v').chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or(0)
    }
}

fn list(properties: &[Property]) -> Value {
    let pair = |(name, value): &Property| Value::Struct(vec![Value::str(name), Value::variant(value.clone())]);
    Value::Array("(sv)".into(), properties.iter().map(pair).collect())
}

fn job(answer: &[Value]) -> Result<String, Error> {
    let job = answer.first().and_then(Value::as_str).map(str::to_owned);
    job.ok_or_else(|| Error::Lost("an answer without a job".into()))
}

/// Where systemd listens itself, which takes no message bus, and where the bus does.
fn sockets(user: bool) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
    let (run, variable, bus) = if user {
        let run = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let run = run.unwrap_or_else(|| format!("/run/user/{}", rustix::process::geteuid().as_raw()).into());
        (run.clone(), "DBUS_SESSION_BUS_ADDRESS", run.join("bus"))
    } else {
        (PathBuf::from("/run"), "DBUS_SYSTEM_BUS_ADDRESS", PathBuf::from("/run/dbus/system_bus_socket"))
    };
    let named = std::env::var(variable).ok().map(|text| addresses(&text)).filter(|addresses| !addresses.is_empty());
    let bus = named.unwrap_or_else(|| at(&bus).into_iter().collect());
    (at(&run.join("systemd/private")).into_iter().collect(), bus)
}
