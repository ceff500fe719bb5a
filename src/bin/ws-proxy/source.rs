//! Source of the settings: a file, or the command line.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use futures_lite::future;
use smol::Timer;
use toml::de::DeTable;
use ws_proxy::{Config, Error, SectionConfig, WsProxy};

use crate::Failure;
use crate::cli::Arguments;
use crate::logging::LogSettings;

/// Files of the working directory that are used by default, in this order.
const DEFAULT_FILES: [&str; 2] = ["ws-proxy.toml", "rws.config.toml"];

/// Message where there are no settings at all.
const USAGE: &str = "nothing to serve: there is no ws-proxy.toml or rws.config.toml here

Usage: ws-proxy --config FILE
       ws-proxy --bind 0.0.0.0:8080 --backend HOST:PORT [--backend HOST:PORT ...]
       ws-proxy check [--config FILE]
       ws-proxy demo

Run ws-proxy --help for more.";

/// Checked settings, and their source.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) config: Config,
    /// Configuration file; `None` for the command line.
    file: Option<File>,
}

/// A configuration file.
#[derive(Debug)]
struct File {
    path: PathBuf,
    /// It was found by default, not named.
    is_found: bool,
    /// Its text when it was last looked at, or the error.
    seen: Result<String, String>,
}

impl Source {
    /// Finds and checks the settings. `config` is a file that was named after the command.
    pub(crate) fn find(arguments: &Arguments, config: Option<&Path>) -> Result<Self, Failure> {
        Self::find_any(arguments, config)?.ok_or_else(|| Failure::Usage(USAGE.to_owned()))
    }

    /// Finds and checks the settings; returns `None` where none are given and there is no file.
    pub(crate) fn find_any(
        arguments: &Arguments,
        config: Option<&Path>,
    ) -> Result<Option<Self>, Failure> {
        let given_flag = given_flag(arguments);
        if let Some(file) = config.or(arguments.config.as_deref()) {
            return match given_flag {
                Some(flag) => Err(Failure::Usage(format!(
                    "{flag} and --config exclude each other: put it in the file"
                ))),
                None => Self::from_file(file, false).map(Some),
            };
        }
        if given_flag.is_some() {
            return Self::from_flags(arguments).map(Some);
        }
        default_file().map(|file| Self::from_file(file, true)).transpose()
    }

    /// Returns the address of `[admin]` in the configuration file, whatever else is wrong there:
    /// a proxy goes on with the settings that it has when its file becomes invalid.
    pub(crate) fn admin_bind(arguments: &Arguments, config: Option<&Path>) -> Option<String> {
        if given_flag(arguments).is_some() {
            return None;
        }
        let named = config.or(arguments.config.as_deref());
        let file = match named {
            Some(file) => file,
            None => default_file()?,
        };
        let text = read(file).ok()?;
        let (document, _errors) = DeTable::parse_recoverable(&text);
        let admin = document.get_ref().get("admin")?.get_ref().get("bind")?;
        admin.get_ref().as_str().map(str::to_owned)
    }

    fn from_file(path: &Path, is_found: bool) -> Result<Self, Failure> {
        read(path).and_then(|text| Self::from_text(path, is_found, text)).map_err(Failure::Usage)
    }

    /// Checks the text of a file. An error is the text for the operator.
    fn from_text(path: &Path, is_found: bool, text: String) -> Result<Self, String> {
        let config = parse(path, &text)?;
        let file = File { path: path.to_owned(), is_found, seen: Ok(text) };
        Ok(Self { config, file: Some(file) })
    }

    /// Reads and checks the same file again. An error is the text for the operator.
    pub(crate) fn reread(&mut self) -> Result<Self, String> {
        let Some(File { path, is_found, seen }) = &mut self.file else {
            return Err("the settings are from the command line: restart with others".to_owned());
        };
        // Remembered even if it is invalid: a watched file is tried once.
        *seen = read_again(path);
        Self::from_text(path, *is_found, seen.clone()?)
    }

    /// Completes when the file no longer has the text that it had when it was last read, if it is
    /// to be watched. The path is followed anew each time: Kubernetes changes a mounted file by
    /// another target of a link on the way to it.
    pub(crate) async fn changed(&self) {
        let interval = self.config.watch_interval;
        let Some(File { path, seen, .. }) = self.file.as_ref().filter(|_| !interval.is_zero())
        else {
            return future::pending().await;
        };
        while read_again(path) == *seen {
            Timer::after(interval).await;
        }
    }

    /// Returns the settings of the log.
    pub(crate) fn log(&self) -> LogSettings {
        LogSettings { format: self.config.log_format, level: self.config.log_level }
    }

    /// Returns the configuration in force as TOML.
    pub(crate) fn text(&self) -> String {
        // It has been checked; a token's file that has gone since is of no account.
        self.config.to_toml().unwrap_or_else(|error| format!("# {error}\n"))
    }

    fn from_flags(arguments: &Arguments) -> Result<Self, Failure> {
        let Some(bind) = arguments.bind.clone() else {
            return Err(Failure::Usage(
                "--bind is missing: say where to listen, as in --bind 0.0.0.0:8080".to_owned(),
            ));
        };
        if arguments.backend.is_empty() {
            let message = "--backend is missing: name at least one, as in --backend 127.0.0.1:9000";
            return Err(Failure::Usage(message.to_owned()));
        }
        let mut proxy = WsProxy::new(arguments.backend.clone());
        if let Some(ms) = arguments.connect_timeout_ms {
            proxy = proxy.connect_timeout_ms(ms);
        }
        if let Some(ms) = arguments.read_timeout_ms {
            proxy = proxy.read_timeout_ms(ms);
        }
        proxy.check(&bind).map_err(|error| match error {
            Error::Setting { key: "backends", problem } => {
                Failure::Usage(format!("--backend: {problem}"))
            }
            Error::Setting { key, problem } => {
                Failure::Usage(format!("--{}: {problem}", key.replace('_', "-")))
            }
            other => Failure::Runtime(other.to_string()),
        })?;
        Ok(Self { config: Config::new(vec![SectionConfig::new(bind, proxy)]), file: None })
    }

    /// Returns the report of `ws-proxy check` on valid settings.
    pub(crate) fn report(&self) -> String {
        let place = self
            .file
            .as_ref()
            .map_or("the command line".to_owned(), |file| file.path.display().to_string());
        let Config { sections, admin, ignored, .. } = &self.config;
        let count = match sections.len() {
            1 => "1 section".to_owned(),
            many => format!("{many} sections"),
        };
        let mut report = format!("{place}: good, {count}");
        for section in sections {
            report += &format!("\n  {}", section.bind);
        }
        if let Some(admin) = admin {
            report += &format!("\n  {} (admin)", admin.bind_address());
        }
        if !ignored.is_empty() {
            let ignored = ignored.iter().map(|key| key.escape_debug().to_string());
            let ignored = ignored.collect::<Vec<_>>().join(", ");
            report += &format!("\n  ignored, not ws-proxy's: {ignored}");
        }
        report
    }

    /// Logs the source, and the keys that are ignored.
    pub(crate) fn tell(&self) {
        let Config { sections, ignored, .. } = &self.config;
        if let Some(File { path, is_found, .. }) = &self.file {
            let how = if *is_found { "found" } else { "named" };
            log::info!(file:% = path.display(), how, sections = sections.len(); "config");
        }
        if !ignored.is_empty() {
            log::warn!(keys:% = ignored.join(", "); "config_ignored");
        }
    }
}

/// Returns the file of the working directory that is used where none is named.
fn default_file() -> Option<&'static Path> {
    // A file that exists and cannot be read is an error, not passed over.
    let is_there = |file: &&Path| match fs::metadata(file) {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    };
    DEFAULT_FILES.into_iter().map(Path::new).find(is_there)
}

/// Reads a configuration file.
fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path)
        .map_err(|error| format!("{}: cannot read the configuration: {error}", path.display()))
}

/// Reads the configuration file while the program serves. Only a regular file: the thread acts on
/// signals, and must not wait for the writer of a pipe.
fn read_again(path: &Path) -> Result<String, String> {
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => Err(format!(
            "{}: cannot read the configuration again: it is not a regular file",
            path.display()
        )),
        _ => read(path),
    }
}

/// Checks the text of a configuration file.
fn parse(path: &Path, text: &str) -> Result<Config, String> {
    Config::parse(text).map_err(|error| {
        // `file:line: key: problem`, as compilers write it; without a line, a space follows.
        let gap = if error.line.is_some() { "" } else { " " };
        format!("{}:{gap}{error}", path.display())
    })
}

/// Returns the first option given that excludes a configuration file.
fn given_flag(arguments: &Arguments) -> Option<&'static str> {
    let flags = [
        (arguments.bind.is_some(), "--bind"),
        (!arguments.backend.is_empty(), "--backend"),
        (arguments.connect_timeout_ms.is_some(), "--connect-timeout-ms"),
        (arguments.read_timeout_ms.is_some(), "--read-timeout-ms"),
    ];
    flags.into_iter().find_map(|(is_given, flag)| is_given.then_some(flag))
}

#[cfg(test)]
mod tests {
    use std::process;

    use super::*;

    #[test]
    fn a_watched_text_is_tried_once_and_any_other_one_again() {
        let path = std::env::temp_dir().join(format!("ws-proxy-watched-{}.toml", process::id()));
        let write = |top: &str| {
            let section = "[[ws_proxy]]\nbind = \"127.0.0.1:0\"\nbackends = [\"a:1\"]\n";
            fs::write(&path, format!("{top}\n{section}")).unwrap();
        };
        let has_changed =
            |source: &Source| future::block_on(future::poll_once(source.changed())).is_some();
        write("watch_config_ms = 1000");
        let mut source = Source::from_file(&path, false).unwrap();
        assert!(!has_changed(&source));
        write("watch_config_ms = \"often\"");
        assert!(has_changed(&source));
        let error = source.reread().unwrap_err();
        assert!(error.contains(":1: watch_config_ms: "), "{error}");
        assert!(!has_changed(&source));
        fs::remove_file(&path).unwrap();
        assert!(has_changed(&source));
        assert!(source.reread().unwrap_err().contains("cannot read"));
        assert!(!has_changed(&source));
        write("watch_config_ms = 0");
        assert!(has_changed(&source));
        let source = source.reread().unwrap();
        write("watch_config_ms = 1");
        // It is not watched any more.
        assert!(!has_changed(&source));
        fs::remove_file(&path).unwrap();
    }
}
