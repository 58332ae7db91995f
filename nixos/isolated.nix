# Guests with a process of their own (`virtiofs.<name>.isolated`): a socket unit, which has the
# socket's mode and group and holds it while the process restarts, and a service that systemd shuts
# in before the program shuts itself in.
{ config, lib, ... }:

let
  cfg = config.services.castore-fs;
  inherit (import ./render.nix { inherit lib; }) execArgs storeCredentials storeUrl;

  daemon = "castore-fs.service";
  unit = name: "castore-fs-virtiofs-${name}";
  isolated = lib.filterAttrs (_: guest: guest.isolated) cfg.virtiofs;

  # What a store may be but is not (undeclared, without a URL) is an assertion's to tell.
  storeOf =
    guest:
    let
      names = lib.attrNames cfg.settings.stores ++ [ "default" ];
      name = if guest.store == null then lib.head names else guest.store;
      alone = {
        url = cfg.settings.stores.${name}.url or "local:/var/lib/castore-fs";
        binaryCache = null;
        credential = null;
        tls = {
          authorities = null;
          certificate = null;
          key = null;
        };
      };
      declared = cfg.stores.${name} or alone;
    in
    declared // { url = toString declared.url; };
in
{
  config = lib.mkIf cfg.enable {
    systemd.sockets = lib.mapAttrs' (
      name: guest:
      lib.nameValuePair (unit name) {
        description = "castore-fs for the virtual machine ${name}";
        wantedBy = [ "sockets.target" ];
        socketConfig = {
          ListenStream = guest.socket;
          SocketMode = guest.socketMode;
          RemoveOnStop = true;
        }
        // lib.optionalAttrs (guest.socketGroup != null) { SocketGroup = guest.socketGroup; };
      }
    ) isolated;

    systemd.services = lib.mapAttrs' (
      name: guest:
      let
        store = storeOf guest;
      in
      lib.nameValuePair (unit name) {
        description = "castore-fs for the virtual machine ${name}";
        # The daemon makes the store, or serves it.
        wants = [ daemon ];
        after = [ daemon ];
        # A restart ends the guest. What a switch brings is for the guest's next start.
        restartIfChanged = false;
        serviceConfig = {
          Type = "notify";
          ExecStart = execArgs (
            [
              (lib.getExe cfg.package)
              "virtiofs"
              "--store"
              (storeUrl "${unit name}.service" store)
            ]
            ++ lib.optionals (guest.tag != null) [
              "--tag"
              guest.tag
            ]
            ++ lib.optionals (guest.root != null) [
              "--root"
              guest.root
            ]
            ++ lib.optional (guest.listRoot == false) "--list-root=refused"
            ++ lib.optional (guest.listRoot == "empty") "--list-root=empty"
            ++ guest.extraFlags
          );
          Restart = "on-failure";
          LoadCredential = map (
            credential: "${credential}:${toString (cfg.credentials.${credential} or "")}"
          ) (storeCredentials store);
          # No other process has to see its mounts, so it has the whole sandbox; what is left of
          # privileges it gives up by itself.
          CapabilityBoundingSet = "";
          LockPersonality = true;
          MemoryDenyWriteExecute = true;
          NoNewPrivileges = true;
          PrivateDevices = true;
          PrivateNetwork = lib.hasPrefix "local:" store.url;
          PrivateTmp = true;
          ProtectClock = true;
          ProtectControlGroups = true;
          ProtectHome = true;
          ProtectHostname = true;
          ProtectKernelLogs = true;
          ProtectKernelModules = true;
          ProtectKernelTunables = true;
          ProtectProc = "invisible";
          ProtectSystem = "strict";
          RestrictAddressFamilies = [
            "AF_UNIX"
            "AF_INET"
            "AF_INET6"
          ];
          RestrictNamespaces = true;
          RestrictRealtime = true;
          RestrictSUIDSGID = true;
          SystemCallArchitectures = "native";
          UMask = "0077";
        }
        // lib.optionalAttrs (cfg.user != null) {
          User = cfg.user;
          Group = cfg.group;
        };
      }
    ) isolated;
  };
}
