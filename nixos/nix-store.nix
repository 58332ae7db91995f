# services.castore-fs.nixStore: what binary caches have is valid for this machine's Nix, and comes when it is
# touched. A store that is kept on the disk, a mount of it below /nix/store (`overNixStore`), the socket at
# which Nix asks for what it knows of a path, and Nix' own local-overlay store on top.
#
# Only the Nix daemon opens that store; all others, the superuser's commands and services among them, ask the
# daemon. In nix.conf the store would be everybody's.
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
        pkgs.util-linux
      ]
    }
    exec ${pkgs.runtimeShell} ${script} refresh ${lower}
  '';
in
{
  options.services.castore-fs.nixStore = {
    enable = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether what binary caches have is valid for this machine's Nix without being copied, and comes when
        it is touched: a `local-overlay` store of Nix (experimental) over a mount. It boots, builds and
        collects without a network. Takes Nix 2.24 or later.
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

  config = lib.mkIf (cfg.enable && own.enable) {
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

    nix.settings.experimental-features = [ "local-overlay-store" ];
    # systemd takes % for the beginning of something.
    systemd.services.nix-daemon.environment.NIX_REMOTE = lib.replaceStrings [ "%" ] [ "%%" ] store;
    systemd.globalEnvironment.NIX_REMOTE = "daemon";
    environment.variables.NIX_REMOTE = "daemon";
  };
}
