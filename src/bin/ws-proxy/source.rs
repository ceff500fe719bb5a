//! Source of the settings: a file, or the command line.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ws_proxy::{AdminConfig, Config, Error, SectionConfig, WsProxy};

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
    pub(crate) sections: Vec<SectionConfig>,
    /// Number of worker threads; 0 is one per CPU.
    pub(crate) workers: usize,
    pub(crate) log: LogSettings,
    /// Admin listener, if there is to be one.
    pub(crate) admin: Option<AdminConfig>,
    /// Configuration file; `None` for the command line.
    file: Option<PathBuf>,
    /// The file was found by default, not named.
    found: bool,
    ignored: Vec<String>,
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
        for file in DEFAULT_FILES.map(Path::new) {
            // A file that exists and cannot be read is an error, not passed over.
            if !matches!(fs::metadata(file), Err(error) if error.kind() == io::ErrorKind::NotFound)
            {
                return Self::from_file(file, true).map(Some);
            }
        }
        Ok(None)
    }

    fn from_file(file: &Path, found: bool) -> Result<Self, Failure> {
        let name = file.display();
        let text = fs::read_to_string(file).map_err(|error| {
            Failure::Usage(format!("{name}: cannot read the configuration: {error}"))
        })?;
        let config = Config::parse(&text).map_err(|error| {
            // `file:line: key: problem`, as compilers write it; without a line, a space follows.
            let gap = if error.line.is_some() { "" } else { " " };
            Failure::Usage(format!("{name}:{gap}{error}"))
        })?;
        let Config { sections, workers, log_format, log_level, admin, ignored, .. } = config;
        let log = LogSettings { format: log_format, level: log_level };
        Ok(Self { sections, workers, log, admin, file: Some(file.to_owned()), found, ignored })
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
        Ok(Self {
            sections: vec![SectionConfig::new(bind, proxy)],
            workers: 0,
            log: LogSettings::default(),
            admin: None,
            file: None,
            found: false,
            ignored: Vec::new(),
        })
    }

    /// Returns the report of `ws-proxy check` on valid settings.
    pub(crate) fn report(&self) -> String {
        let place = self
            .file
            .as_ref()
            .map_or("the command line".to_owned(), |file| file.display().to_string());
        let count = match self.sections.len() {
            1 => "1 section".to_owned(),
            many => format!("{many} sections"),
        };
        let mut report = format!("{place}: good, {count}");
        for section in &self.sections {
            report += &format!("\n  {}", section.bind);
        }
        if let Some(admin) = &self.admin {
            report += &format!("\n  {} (admin)", admin.bind_address());
        }
        if !self.ignored.is_empty() {
            report += &format!("\n  ignored, not ws-proxy's: {}", self.ignored.join(", "));
        }
        report
    }

    /// Logs the source, and the keys that are ignored.
    pub(crate) fn tell(&self) {
        if let Some(file) = &self.file {
            let how = if self.found { "found" } else { "named" };
            log::info!(file:% = file.display(), how, sections = self.sections.len(); "config");
        }
        if !self.ignored.is_empty() {
            log::warn!(keys:% = self.ignored.join(", "); "config_ignored");
        }
    }
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
