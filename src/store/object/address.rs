//! The URL of a bucket: its parameters, the options and credentials of its cloud, and opening it.

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3ConfigKey;
use object_store::azure::AzureConfigKey;
use object_store::gcp::GoogleConfigKey;
use object_store::path::Path;
use object_store::{ClientConfigKey, ClientOptions, ObjectStore, ObjectStoreScheme, RetryConfig};
use url::Url;

use super::http::{BoundedConnector, ServiceClock};
use crate::quantity::Size;
use crate::store::authorities::explain;
use crate::store::credential;
use crate::store::extents::ChunkVerification;
use crate::store::shown_url::shown_parameter;

/// The deadline for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Bytes in the temporary directory, unless the URL has another limit.
const DOWNLOAD_BUFFER_BYTES: usize = 4 << 30;
/// Environment variables with the options and credentials of a cloud.
const ENVIRONMENT: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];
/// Words in the names of secret parameters.
const SECRETS: [&str; 12] = [
    "secret",
    "token",
    "password",
    "passwd",
    "encryption_key",
    "master_key",
    "access_key",
    "accesskey",
    "account_key",
    "accountkey",
    "sas",
    "signature",
];

/// A store, a path in it, and the clock of its service.
pub(super) type OpenedPath = (Box<dyn ObjectStore>, Path, Option<Arc<ServiceClock>>);

/// A parsed URL.
pub(super) struct BucketAddress {
    /// Without the query.
    pub(super) place: Url,
    /// The verification that bytes need before they are returned.
    pub(super) verify: ChunkVerification,
    /// Bytes of the temporary directory that may be used.
    pub(super) download_buffer: usize,
    credentials_file: Option<PathBuf>,
    /// Options of the object store, by their names in the crate `object_store`.
    options: Vec<(String, String)>,
}

impl BucketAddress {
    /// Parses `url`; returns what is wrong otherwise, without secrets.
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        let place = url
            .strip_prefix("objectstore+")
            .ok_or("it does not start with objectstore+")?;
        let mut place = Url::parse(place).map_err(|error| error.to_string())?;
        // A container of Azure is written as a user.
        let names_container = matches!(place.scheme(), "az" | "adl" | "azure" | "abfs" | "abfss");
        if place.password().is_some() || !place.username().is_empty() && !names_container {
            return Err(in_the_environment("a user or password"));
        }
        if place.fragment().is_some() {
            return Err("nothing can follow a # in it".to_owned());
        }
        let mut address = Self {
            place: place.clone(),
            verify: ChunkVerification::default(),
            download_buffer: DOWNLOAD_BUFFER_BYTES,
            credentials_file: None,
            options: Vec::new(),
        };
        if place.scheme() == "http" {
            let allow = ("allow_http".to_owned(), "true".to_owned());
            address.options.push(allow);
        }
        for (name, value) in place.query_pairs() {
            let name = name.to_ascii_lowercase();
            match name.as_str() {
                "verify" => address.verify = ChunkVerification::parse(&value)?,
                "spool" => {
                    let Size(bytes) =
                        Size::or_mebibytes(&value).map_err(|why| format!("spool: {why}"))?;
                    address.download_buffer = bytes as usize;
                }
                // By how much snix cuts what it writes.
                "avg_chunk_size" => {}
                "credentials-file" => {
                    address.credentials_file = Some(PathBuf::from(value.as_ref()));
                }
                _ if !name.ends_with("skip_signature")
                    && SECRETS.iter().any(|secret| name.contains(secret)) =>
                {
                    return Err(in_the_environment(&shown_parameter(&name, &value)));
                }
                _ => {
                    // An explicit http:// is allowed.
                    let in_clear = name.ends_with("endpoint") && value.starts_with("http://");
                    address.options.push((name, value.into_owned()));
                    if in_clear {
                        let allow = ("allow_http".to_owned(), "true".to_owned());
                        address.options.push(allow);
                    }
                }
            }
        }
        place.set_query(None);
        let (scheme, _) = ObjectStoreScheme::parse(&place).map_err(|error| explain(&error))?;
        if let Some((name, value)) = address
            .options
            .iter()
            .find(|(name, _)| !knows(&scheme, name))
        {
            let name = shown_parameter(name, value);
            return Err(format!(
                "there is no parameter {name} for {}; there are {}",
                place.scheme(),
                parameters(&scheme)
            ));
        }
        address.place = place;
        Ok(address)
    }

    /// Opens the bucket; returns why it cannot be opened otherwise.
    pub(super) fn open(self) -> Result<OpenedPath, String> {
        let mut options: Vec<(String, String)> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| ENVIRONMENT.iter().any(|prefix| name.starts_with(prefix)))
            .map(|(name, value)| (name.to_ascii_lowercase(), value))
            .collect();
        if let Some(path) = self.credentials_file {
            options.extend(credentials(&path)?);
        }
        options.extend(self.options);
        // An error means that a default is installed already, which is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        open(&self.place, options).map_err(|error| {
            let why = explain(&error);
            match why.contains("Account must be specified") {
                true => "it does not name the storage account: add account_name=NAME to the URL, or set \
                         AZURE_STORAGE_ACCOUNT_NAME"
                    .to_owned(),
                false => why,
            }
        })
    }
}

/// The parameters of a store of this kind, for an error.
fn parameters(scheme: &ObjectStoreScheme) -> &'static str {
    match scheme {
        ObjectStoreScheme::Local | ObjectStoreScheme::Memory => "only verify and spool",
        ObjectStoreScheme::GoogleCloudStorage => {
            "verify, spool, credentials-file, and options such as google_service_account and skip_signature"
        }
        ObjectStoreScheme::MicrosoftAzure => {
            "verify, spool, credentials-file, and options such as account_name, endpoint and skip_signature"
        }
        ObjectStoreScheme::Http => "verify, spool, and options such as allow_http and proxy_url",
        _ => {
            "verify, spool, credentials-file, and options such as endpoint, region and skip_signature"
        }
    }
}

/// Whether `name` is an option of a store of this kind. Future kinds are not known here.
fn knows(scheme: &ObjectStoreScheme, name: &str) -> bool {
    match scheme {
        ObjectStoreScheme::Local | ObjectStoreScheme::Memory => false,
        ObjectStoreScheme::AmazonS3 => name.parse::<AmazonS3ConfigKey>().is_ok(),
        ObjectStoreScheme::GoogleCloudStorage => name.parse::<GoogleConfigKey>().is_ok(),
        ObjectStoreScheme::MicrosoftAzure => name.parse::<AzureConfigKey>().is_ok(),
        ObjectStoreScheme::Http => name.parse::<ClientConfigKey>().is_ok(),
        _ => true,
    }
}

/// The store and path that `url` names.
fn open(url: &Url, options: Vec<(String, String)>) -> object_store::Result<OpenedPath> {
    let clock = Arc::new(ServiceClock::default());
    // The bucket's calls have retries and deadlines of their own.
    let retry = RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    };
    let client = ClientOptions::new()
        .with_connect_timeout(CONNECT)
        .with_timeout_disabled();
    let (scheme, path) = ObjectStoreScheme::parse(url)?;
    // As object_store::parse_url_opts, which has no parameter for retries.
    macro_rules! built {
        ($builder:ty, $url:expr) => {{
            let builder = <$builder>::new()
                .with_url($url)
                .with_retry(retry)
                .with_client_options(client)
                .with_http_connector(BoundedConnector(clock.clone()));
            let builder = options.into_iter().fold(builder, |builder, (name, value)| {
                match name.parse() {
                    Ok(key) => builder.with_config(key, value),
                    // An option of another cloud, or of castore-fs.
                    Err(_) => builder,
                }
            });
            Box::new(builder.build()?) as Box<dyn ObjectStore>
        }};
    }
    let store = match scheme {
        ObjectStoreScheme::AmazonS3 => built!(object_store::aws::AmazonS3Builder, url.as_str()),
        ObjectStoreScheme::GoogleCloudStorage => {
            built!(object_store::gcp::GoogleCloudStorageBuilder, url.as_str())
        }
        ObjectStoreScheme::MicrosoftAzure => {
            built!(object_store::azure::MicrosoftAzureBuilder, url.as_str())
        }
        ObjectStoreScheme::Http => {
            let host = &url[..url::Position::BeforePath];
            built!(object_store::http::HttpBuilder, host)
        }
        _ => {
            let (store, path) = object_store::parse_url_opts(url, options)?;
            return Ok((store, path, None));
        }
    };
    Ok((store, path, Some(clock)))
}

/// The options in a file of lines `name = value`: an AWS credentials file of one profile, or an
/// environment file.
fn credentials(path: &FilePath) -> Result<Vec<(String, String)>, String> {
    let shown = path.display();
    let text = String::from_utf8(credential::read_secret("credentials-file", path)?)
        .map_err(|_| format!("{shown} holds no credentials: it is not text"))?;
    let mut options = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';', '[']) {
            continue;
        }
        let (name, value) = line.split_once('=').ok_or_else(|| {
            // The line may hold a secret.
            format!("{shown}: line {} is not NAME=VALUE", number + 1)
        })?;
        let value = value.trim().trim_matches('"');
        options.push((name.trim().to_ascii_lowercase(), value.to_owned()));
    }
    if options.is_empty() {
        return Err(format!(
            "{shown} holds no credentials: write NAME=VALUE lines"
        ));
    }
    Ok(options)
}

fn in_the_environment(what: &str) -> String {
    format!(
        "{what} is a secret and belongs into the environment or a credentials-file, not into a URL"
    )
}
