# services.castore-fs.nixStore: what binary caches have is valid for this machine's Nix, and comes when it is
# read. A store that is kept on the disk, a mount of it below /nix/store (`overNixStore`), the socket at
# which Nix asks for what it knows of a path, and Nix' own local-overlay store on top.
#
# Only the Nix daemon opens that store; all others, the superuser's commands and services among them, ask the
# daemon. In nix.conf the store would be every user's.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib) mkOption types;
  cfg = config.services.castore-fs;
  own = cfg.nixStore;

  name = "nix-store";
  disk = "nix-store-disk";
  socket = "/run/castore-fs-${name}.sock";
  lower = "/run/castore-fs-${name}-lower";
  # Where nix-store-overlay.sh has the machine's own store.
  upper = "/run/castore-fs-nix-store/store";
  script = ./nix-store-overlay.sh;

  parameters =
    values:
    lib.concatStringsSep "&" (
      lib.mapAttrsToList (key: value: "${key}=${lib.escapeURL (toString value)}") values
    );
  lowerStore = "unix://${socket}?real=${lower}";
  store = "local-overlay://?${
    parameters {
      lower-store = lowerStore;
      upper-layer = upper;
      remount-hook = hook;
    }
  }";
  # Nix calls it with the place of the merged store once it has deleted what is below too.
  hook = pkgs.writeShellScript "castore-fs-nix-store-refresh" ''
    PATH=${
      lib.makeBinPath [
        pkgs.coreutils
        pkgs.findutils
        pkgs.gnugrep
        pkgs.util-linux
      ]
    }
    exec ${pkgs.runtimeShell} ${script} refresh ${lower}
  '';
  systemctl = "${config.systemd.package}/bin/systemctl";
in
{
  options.services.castore-fs.nixStore = {
    enable = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether what binary caches have is valid for this machine's Nix without being copied, and comes when
        it is touched: a `local-overlay` store of Nix (experimental) over a mount. It builds and collects without
        a network, and boots: a switch (`switch`, `boot`, `test`) first copies the system and all that it refers
        to into the machine's own store, castore-fs included. Takes Nix 2.24 or later. The two stores that it declares
        are meant by no entry that names no store.
      '';
    };

    binaryCaches = mkOption {
      type = types.listOf types.str;
      default = [ "https://cache.nixos.org" ];
      description = "The binary caches; several are asked in the order of their priorities.";
    };

    trustedPublicKeys = mkOption {
      type = types.listOf types.str;
      default = [ "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=" ];
      description = ''
        The public keys by one of which a path has to be signed. They are Nix' trust: it does not check a path
        of the store below again.
      '';
    };

    size = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "50GiB";
      description = ''
        How much contents may take on the disk; null for as much as there is. What was evicted is fetched again when
        it is touched; what is known of the paths stays.
      '';
    };

    store = mkOption {
      type = types.str;
      default = name;
      example = "main";
      description = ''
        The store below, by its name in {option}`services.castore-fs.stores`: by default one that is made of
        `binaryCaches`. It has to be one that keeps what it knows on this machine: a `binaryCache`, a `cache`, or one
        with a `local:` URL.
      '';
    };
  };

  config = lib.mkMerge [
    {
      assertions = map (entry: entry // { message = "services.castore-fs: ${entry.message}"; }) (
        lib.optionals own.enable [
          {
            assertion = cfg.enable;
            message = "`nixStore.enable` is set, and there is no daemon that would serve it. Set `services.castore-fs.enable`, or leave `nixStore.enable` out.";
          }
          {
            assertion = lib.versionAtLeast (config.nix.package.version or "2.24") "2.24";
            message = "`nixStore` takes Nix 2.24 or later, and `nix.package` is Nix ${
              config.nix.package.version or ""
            }. Set `nix.package` to a later one, as in `pkgs.nixVersions.latest`, or leave `nixStore.enable` out.";
          }
          {
            assertion = !config.nix.optimise.automatic;
            message = "`nix.optimise.automatic` is set, and with `nixStore` an optimisation deletes what is below too from the machine's own store, of which it boots. Leave `nix.optimise.automatic` out; `nix.settings.auto-optimise-store` makes equal files one, and deletes nothing.";
          }
        ]
      );

      # Of whatever is to be booted or switched to, one without castore-fs too: it was built, or fetched, by a Nix
      # for which what is below is there. Without an overlay this does nothing.
      system.preSwitchChecks.castore-fs-nix-store = ''
        case "''${2-}" in
          check | dry-activate) exit 0 ;;
        esac
        PATH=${
          lib.makeBinPath [
            pkgs.attr
            config.nix.package
            pkgs.coreutils
            pkgs.findutils
            pkgs.gnugrep
            pkgs.util-linux
          ]
        } ${pkgs.runtimeShell} ${script} keep ${lower} "$1" ${systemctl} --no-block try-restart nix-daemon.service
      '';
    }
    (lib.mkIf (cfg.enable && own.enable) {
      services.castore-fs = {
        stores = lib.mkIf (own.store == name) {
          ${disk}.url = "local:/var/lib/castore-fs/${name}";
          ${name}.binaryCache = {
            url = own.binaryCaches;
            into = disk;
            inherit (own) size trustedPublicKeys;
          };
        };
        mounts.${name} = {
          inherit (own) store;
          path = lower;
          overNixStore = true;
          settings = {
            # Nix looks up each name that it is about to create: only what it was given as valid is looked for.
            names = "valid-paths";
            when-unreachable = "error";
          };
        };
        settings.listen.${name} = {
          inherit (own) store;
          # The socket is there before the daemon, and while that is restarted.
          address = "systemd:${name}";
          protocol = "nix-daemon";
        };
      };

      systemd.sockets."castore-fs-${name}" = {
        description = "Socket at which Nix asks for the store paths of castore-fs";
        wantedBy = [ "sockets.target" ];
        listenStreams = [ socket ];
        socketConfig = {
          FileDescriptorName = name;
          Service = "castore-fs.service";
          SocketMode = "0600";
        };
      };

      # With its own start the daemon starts the socket first, and so it does with a restart: one that runs
      # already would not be given it, and systemd starts no socket of a service that is running.
      systemd.services.castore-fs = {
        wants = [ "castore-fs-${name}.socket" ];
        after = [ "castore-fs-${name}.socket" ];
      };

      # The first command after the boot finds what is valid on the disk. Nix works without the overlay as well,
      # for what needs nothing of it; so it is not required.
      systemd.services.nix-daemon = {
        wants = [ "castore-fs-nix-store.service" ];
        after = [ "castore-fs-nix-store.service" ];
        # systemd takes % for the beginning of something.
        environment.NIX_REMOTE = lib.replaceStrings [ "%" ] [ "%%" ] store;
      };

      nix.settings.extra-experimental-features = [ "local-overlay-store" ];

      # Of services, of which no unit changes by it; of sessions, sudo's too, which PAM begins; of shells.
      systemd.settings.Manager.DefaultEnvironment = [ "NIX_REMOTE=daemon" ];
      environment.sessionVariables.NIX_REMOTE = "daemon";
      environment.variables.NIX_REMOTE = "daemon";
    })
  ];
}
